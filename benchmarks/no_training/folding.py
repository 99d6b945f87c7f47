"""Model folding (Wang et al., Forget the data and fine-tuning! Just fold the network to compress, ICLR 2025):
similar units of a group become one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.no_training.bench import Bench, reestimated
from disparse_structured.decision.rankings import LayerRanking
from disparse_structured.graph.copies import copied
from disparse_structured.refit.contraction import Contraction, contractions
from disparse_structured.scoring.criteria import Magnitude
from disparse_structured.structure import Structure
from disparse_structured.structure.groups import Member
from disparse_structured.surgery.module import cut

ROUNDS = 25
"""The most rounds of k-means."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Folding:
    """As many clusters in each group as magnitude pruning at uniform widths keeps units.

    Units are clustered by k-means on the weights that produce them, batch norms folded in. A cluster's first
    unit gets the mean of the weights that produce its units, and consumers the sum of those that read them.

    Args:
        repair: re-estimate the statistics of batch norms from the images, as the paper's Fold-R does.
        seed: random seed of the first centers.
    """

    repair: bool = True
    seed: int = 0

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        structure = bench.structure
        widths = bench.keep(Magnitude(), LayerRanking(), fraction)
        folded, keep = fold(bench.model, structure, widths, self.seed)
        pruned = cut(folded, structure, keep)
        return reestimated(pruned, bench.images) if self.repair else pruned


@torch.no_grad()
def fold(model: nn.Module, structure: Structure, widths: Tensor, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A folded copy of ``model`` in dense coordinates, and the units that stand for their clusters.

    Args:
        widths: bool ``[units]``; each group is divided into as many clusters as it has units that are True.
        seed: random seed of the first centers.
    """
    result = copied(model)
    state = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    layers = contractions(structure, torch.ones(structure.units, dtype=torch.bool))
    _absorb_norms(result, state, layers)
    reads = {(each.weight, _input_dim(each)) for each in layers if each.groups == 1}
    generator = torch.Generator().manual_seed(seed)
    keep = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        count = int(widths[group.slice].sum())
        if count == group.units:
            continue
        makes = [member for member in group.members if (member.parameter, member.dim) not in reads]
        clusters = kmeans(_features(state, makes), count, generator)
        first = torch.tensor([int((clusters == each).nonzero()[0]) for each in range(count)])
        keep[group.slice] = False
        keep[group.start + first] = True
        for member in group.members:
            _merge(state, member, clusters, first, add=(member.parameter, member.dim) in reads)
    return result, keep


def kmeans(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Cluster numbers, int64 ``[points]``, all of ``0..count - 1`` in use: k-means++, then Lloyd's rounds."""
    points = _coordinates(points)
    picks = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = (points - points[picks[0]]).square().sum(1)
    while len(picks) < count:
        offered = nearest + 1e-12 * nearest.max() + 1e-30  # equal points are drawn last
        offered[picks] = 0.0
        picks.append(int(torch.multinomial(offered, 1, generator=generator)))
        nearest = torch.minimum(nearest, (points - points[picks[-1]]).square().sum(1))
    centers = points[picks]
    labels = torch.full((len(points),), -1)
    for _ in range(ROUNDS):
        distance = torch.cdist(points, centers)
        found = _filled(distance.argmin(1), distance, count)
        if torch.equal(found, labels):
            break
        labels = found
        sizes = labels.bincount(minlength=count)[:, None]
        centers = torch.zeros_like(centers).index_add_(0, labels, points) / sizes
    return labels


def _coordinates(points: Tensor) -> Tensor:
    """The same distances in no more dimensions than there are points."""
    if points.shape[1] <= len(points):
        return points
    values, vectors = torch.linalg.eigh(points @ points.mT)
    coordinates: Tensor = vectors * values.clamp(min=0).sqrt()
    return coordinates


def _filled(labels: Tensor, distance: Tensor, count: int) -> Tensor:
    """``labels`` with the points that are farthest from their centers moved into empty clusters."""
    labels = labels.clone()
    for empty in (labels.bincount(minlength=count) == 0).nonzero().flatten().tolist():
        own = distance.gather(1, labels[:, None])[:, 0].clone()
        own[labels.bincount(minlength=count)[labels] < 2] = -1.0
        labels[own.argmax()] = empty
    return labels


def _absorb_norms(model: nn.Module, state: State, layers: Sequence[Contraction]) -> None:
    """Moves what batch norms divide by into the layers before them, so that their weights compare.

    The network computes the same. A norm's weight stays the spread of its channels, without its sign,
    which goes into the layer too.
    """
    for layer in layers:
        if not layer.subtracts or len(layer.bias) != 1 or layer.transposed:
            continue
        path, _, _ = layer.bias[0].rpartition(".")
        mean, variance = state[layer.bias[0]], state[f"{path}.running_var"]
        norm = model.get_submodule(path)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.weight is None:
            continue
        spread = state[f"{path}.weight"]
        scale = spread / (variance + norm.eps).sqrt()
        weight = state[layer.weight]
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
        mean.mul_(scale)
        spread.abs_()
        variance.copy_((spread.square() - norm.eps).clamp(min=0))  # below eps, a channel is next to silent


def _input_dim(layer: Contraction) -> int:
    return 0 if layer.transposed else 1


def _features(state: State, makes: Sequence[Member]) -> Tensor:
    """``[units, features]``: all slices of the weights that produce a unit, in one row."""
    slices = []
    for member in makes:
        taken = state[member.parameter].movedim(member.dim, 0)[torch.from_numpy(member.index)]
        if taken.is_floating_point():
            slices.append(taken.flatten(1))
    return torch.cat(slices, 1).double()


def _merge(state: State, member: Member, clusters: Tensor, first: Tensor, add: bool) -> None:
    """One member's slices summed or averaged over each cluster, into the place of its first unit."""
    tensor = state[member.parameter].movedim(member.dim, 0)
    index = torch.from_numpy(member.index)
    taken = tensor[index]
    merged = taken.new_zeros(len(first), *taken.shape[1:]).index_add_(0, clusters, taken)
    if not add:
        sizes = clusters.bincount(minlength=len(first)).to(merged)
        merged /= sizes.view(-1, *[1] * (merged.ndim - 1))
    tensor[index[first]] = merged
