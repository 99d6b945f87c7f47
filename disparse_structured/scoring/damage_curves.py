"""Damage curves: each channel group narrowed alone, its readers refit, and the tasks' outputs measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from disparse_structured.data.batches import batch_size, take
from disparse_structured.data.calibration import Calibration
from disparse_structured.data.deviation import Movement, has_several_sizes
from disparse_structured.errors import BatchError
from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.refit.contraction import Contraction, DenseLayers
from disparse_structured.scoring.compensation import RIDGE, Compensation
from disparse_structured.scoring.elimination import MOST, elimination_costs
from disparse_structured.scoring.execution import Execution, State
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import structure_for_batch
from disparse_structured.structure.groups import ChannelGroup
from disparse_structured.structure.structure import check_described
from disparse_structured.verification.twin import MaskedReads

LEFT = (0.7, 0.4, 0.2, 0.07)
"""Fractions of kept units at which a group's curve is measured."""

JUDGED = 8
"""Examples on which outputs are compared."""

LEAST_JUDGED = 2
"""Fewest of these, however large the network."""

WORK = 1.5e12
"""Most multiply-accumulates for all comparisons: about a minute on two cores."""

_LEAST = 1e-12
"""Squared relative deviations below this are rounding errors."""

_MOST = 1e12
"""The damage assigned to outputs that are not finite."""


@dataclass(frozen=True)
class Curve:
    """The curve of one group.

    Args:
        group: its name.
        removed: how many units were removed, ascending.
        damage: for each task, the squared relative deviation of its output at each of ``removed``; where the
            output has columns of several sizes, the mean over the sizes.
    """

    group: str
    removed: tuple[int, ...]
    damage: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class DamageCurves:
    """The curves of all groups, and the resulting saliency.

    ``scores``, float64 ``[tasks, units]``: what each unit adds to its task's squared relative deviation
    when units are removed in the task's own order. ``eliminated``: whether all units are in the order of
    elimination. ``unmoved``: the tasks whose outputs stay the same, bit for bit, when all groups are
    narrowed to one unit.
    """

    tasks: tuple[str, ...]
    curves: tuple[Curve, ...]
    scores: Tensor
    eliminated: bool
    unmoved: tuple[str, ...]


@torch.no_grad()
def measure_damage_curves(
    model: nn.Module,
    structure: Structure,
    scores: Callable[[], Tensor],
    calibration: Calibration,
    *,
    keep: Tensor | None = None,
    left: Sequence[float] = LEFT,
    judged: int = JUDGED,
    eliminate: bool = False,
    work: float = WORK,
    seed: int = 0,
) -> DamageCurves:
    """Measure the curves of all groups of ``model``, masked by ``keep``, and turn them into a saliency.

    Each group is narrowed alone, its readers get the weights that best compensate for it
    (:class:`~disparse_structured.scoring.compensation.Compensation`), and the tasks' outputs are compared
    with those before. The model and the random states are unchanged; equal arguments give equal curves.

    Memory beyond the model's: the moments of every layer's inputs, all readers' weights once for each of
    ``left``, and all activations of one chunk.

    Args:
        scores: returns ``[tasks, units]``, >= 0. They order the removal of units within a group: their mean
            over the tasks where curves are measured, a task's own where they become its saliency.
        calibration: layers are refit on its even chunks; outputs are compared on examples of the odd ones.
        keep: bool ``[units]``, False = already removed. By default, all are kept.
        left: the fractions of kept units at which a group's curve is measured.
        judged: examples on which outputs are compared. If that would exceed ``work``, fewer are used, down
            to :data:`LEAST_JUDGED`, and if need be only the first, the middle and the last of ``left``.
        eliminate: order the units of a group by what their readers lose once the other units have made up for
            them (:mod:`disparse_structured.scoring.elimination`), for all tasks alike. ``scores`` is called
            only if there are groups of which no reader can be refit, or very wide ones, and orders those.
        work: most multiply-accumulates for all comparisons, counting each as a whole pass.
        seed: draws the positions that layers are refit on.

    Raises:
        PlanError: ``structure`` does not describe ``model``.
        BatchError: a task's outputs hold no finite number, or the model rejects the calibration's chunks.
    """
    keep = torch.ones(structure.units, dtype=torch.bool) if keep is None else keep.cpu()
    state = detached_tensors(model)
    check_described(state, structure)
    fitting = structure_for_batch(structure, model, calibration.chunks[0])
    layers = DenseLayers.of(fitting)
    base = {each.weight: each for each in layers.under(keep).contractions}
    compensation = Compensation(tuple(base.values()))
    execution = Execution(fitting, MaskedReads(fitting, keep))
    compensation.observe(execution, state, calibration.chunks[::2], torch.Generator().manual_seed(seed))
    costs = _eliminated(structure.groups, state, compensation, base, keep) if eliminate else {}
    eliminated = len(costs) == len(structure.groups)
    order = torch.zeros(structure.reach.shape, dtype=torch.float64)
    if not eliminated:
        order += scores().cpu()
        order /= order.sum(dim=1, keepdim=True).clamp_min(_LEAST)
    for group in structure.groups:
        if group.name in costs:
            order[:, group.slice] = structure.reach[:, group.slice] * costs[group.name]
    dense = float(structure.cost.macs.dense)
    narrowed = list(_narrowed(structure.groups, order, keep, left))
    if dense * len(narrowed) * LEAST_JUDGED > work:
        few = dict.fromkeys((left[0], left[len(left) // 2], left[-1]))
        narrowed = list(_narrowed(structure.groups, order, keep, tuple(few)))
    affordable = max(LEAST_JUDGED, int(work / max(1.0, dense * len(narrowed))))
    batches = _comparison_batches(structure, calibration, min(judged, affordable))
    variants = _compensated(fitting, state, compensation, base, layers, narrowed)
    fewest = _fewest(structure.groups, keep)
    variants.append(_Variant("", int((keep & ~fewest).sum()), fewest, {}))
    comparing = structure_for_batch(structure, model, batches[0])
    damage = _damage(comparing, state, keep, variants, batches)
    unmoved = tuple(task for task, moved in zip(structure.tasks, damage[:, -1], strict=True) if not moved)
    curves = []
    for group in structure.groups:
        numbers = [number for number, each in enumerate(variants) if each.group == group.name]
        removed = tuple(variants[number].removed for number in numbers)
        curves.append(Curve(group.name, removed, tuple(map(tuple, damage[:, numbers].tolist()))))
    saliency = _saliency(structure.groups, structure.tasks, curves, order, keep)
    return DamageCurves(structure.tasks, tuple(curves), saliency, eliminated, unmoved)


@dataclass(frozen=True, eq=False)
class _Variant:
    """``group`` with ``removed`` more units removed; ``changed`` are its readers' new tensors."""

    group: str
    removed: int
    keep: Tensor
    changed: State


def _narrowed(
    groups: Sequence[ChannelGroup], scores: Tensor, keep: Tensor, left: Sequence[float]
) -> Iterator[_Variant]:
    """Every group at every fraction, not yet compensated."""
    for group in groups:
        on = keep[group.slice].nonzero()[:, 0] + group.start
        order = _joint(scores, on)
        for count in sorted({len(on) - max(1, round(share * len(on))) for share in left if len(on)} - {0}):
            without = keep.clone()
            without[order[:count]] = False
            yield _Variant(group.name, count, without, {})


def _joint(scores: Tensor, on: Tensor) -> Tensor:
    """The units ``on`` in the order in which they are removed to measure curves."""
    return on[scores[:, on].sum(0).argsort(stable=True)]


def _eliminated(
    groups: Sequence[ChannelGroup],
    state: State,
    compensation: Compensation,
    base: Mapping[str, Contraction],
    keep: Tensor,
) -> dict[str, Tensor]:
    """The groups' :func:`elimination_costs`, where there are any: float64 ``[units]``, with a sum of 1."""
    result = {}
    for group in groups:
        on = keep[group.slice].nonzero()[:, 0]
        members = [member for member in group.members if member.reads and member.parameter in base]
        if len(members) * len(on) ** 2 > MOST:
            continue
        found = [compensation.read(base[each.parameter], each.index[on.numpy()], state) for each in members]
        readers = [each for each in found if each is not None]
        if not readers:
            continue
        costs = elimination_costs(readers, RIDGE)
        if bool(costs.isfinite().all()) and costs.sum() > 0:
            result[group.name] = torch.zeros(group.units, dtype=torch.float64)
            result[group.name][on] = costs / costs.sum()
    return result


def _compensated(
    structure: Structure,
    state: State,
    compensation: Compensation,
    base: Mapping[str, Contraction],
    layers: DenseLayers,
    variants: Sequence[_Variant],
) -> list[_Variant]:
    found = []
    for variant in variants:
        changed: dict[str, Tensor] = {}
        members = {member.parameter for member in structure.group(variant.group).members}
        for each in layers.under(variant.keep, only=members).contractions:
            if each.weight in base:
                changed.update(compensation.without(base[each.weight], each, state))
        found.append(replace(variant, changed=changed))
    return found


def _comparison_batches(structure: Structure, calibration: Calibration, judged: int) -> list[tuple[Any, ...]]:
    """Examples of the odd chunks; if a whole chunk is too much, batches of the structure's size."""
    chunks = calibration.chunks[1::2]
    size, smaller = batch_size(chunks[0]), batch_size(structure.example_inputs)
    if judged >= size or smaller >= size:
        return list(chunks[: max(1, judged // size)])
    return [take(chunk, slice(smaller)) for chunk in chunks[: max(1, judged // smaller)]]


def _damage(
    structure: Structure,
    state: State,
    keep: Tensor,
    variants: Sequence[_Variant],
    batches: Sequence[tuple[Any, ...]],
) -> np.ndarray:
    """float64 ``[tasks, variants]``: squared relative deviations; absolute where all outputs are zero.

    For a task whose output has columns of several sizes, their mean over the sizes.
    """
    masking = MaskedReads(structure, keep)
    execution = Execution(structure, masking)
    maskings = [masking.under(each.keep) for each in variants]
    size = np.zeros(len(structure.tasks))
    finite = np.zeros(len(structure.tasks), dtype=bool)
    off = np.zeros((len(structure.tasks), len(variants)))
    by_size: dict[str, list[Movement]] = {}
    for batch in batches:
        values = execution.values(state, batch)
        wanted = execution.outputs(values)
        usable = {task: [each.isfinite() for each in found] for task, found in wanted.items()}
        size += [_squares(wanted[task], usable[task]) for task in structure.tasks]
        finite |= [not found or any(each.any() for each in found) for found in usable.values()]
        if batch is batches[0]:
            several = [task for task, tensors in wanted.items() if has_several_sizes(tensors)]
            by_size = {task: [Movement() for _ in variants] for task in several}
        for number, (variant, narrowed) in enumerate(zip(variants, maskings, strict=True)):
            given = execution.variant(values, state, variant.changed, narrowed, batch)
            off[:, number] += [_squares(wanted[task], usable[task], given[task]) for task in structure.tasks]
            for task, moved in by_size.items():
                moved[number].add(given[task], wanted[task])
    for task, any_finite in zip(structure.tasks, finite, strict=True):
        if not any_finite:
            raise BatchError(
                f"task {task!r}: the network's output holds no finite number on these examples, so no "
                "damage can be measured. Pass inputs that the model was made for."
            )
    relative = off / np.where(size > 0, size, 1.0)[:, None]
    for task, moved in by_size.items():
        relative[structure.tasks.index(task)] = [each.damage for each in moved]
    damage: np.ndarray = np.nan_to_num(relative, nan=_MOST, posinf=_MOST)
    return damage


def _fewest(groups: Sequence[ChannelGroup], keep: Tensor) -> Tensor:
    """The first unit of each group that is kept, bool ``[units]``."""
    fewest = torch.zeros_like(keep)
    for group in groups:
        fewest[group.slice.start + keep[group.slice].nonzero()[:1, 0]] = True
    return fewest


def _squares(
    wanted: Sequence[Tensor], usable: Sequence[Tensor], given: Sequence[Tensor] | None = None
) -> float:
    """The sum of squares of ``wanted``, or of its difference from ``given``, where ``usable``."""
    total = 0.0
    for number, (tensor, where) in enumerate(zip(wanted, usable, strict=True)):
        off = tensor if given is None else tensor - given[number]
        off = off if bool(where.all()) else off[where]
        wide = torch.promote_types(off.dtype, torch.float64)
        total += float(torch.linalg.vector_norm(off, dtype=wide)) ** 2
    return total


def _saliency(
    groups: Sequence[ChannelGroup],
    tasks: Sequence[str],
    curves: Sequence[Curve],
    scores: Tensor,
    keep: Tensor,
) -> Tensor:
    """Curves as scores of units: damage is interpolated over cumulative scores, in each task's order.

    Only the lower convex hull of the damage counts, because units of a group are removed in order: the
    thresholds of a ranking are Lagrange multipliers, which only reach the corners of a hull (Shoham and
    Gersho, IEEE TASSP 1988).
    """
    result = torch.zeros_like(scores)
    for group, curve in zip(groups, curves, strict=True):
        on = keep[group.slice].nonzero()[:, 0] + group.start
        joint = _joint(scores, on)
        for row, task in enumerate(tasks):
            if task not in group.reach:
                continue
            own = on[scores[row, on].argsort(stable=True)]
            together = np.concatenate([[0.0], scores[row, joint].numpy().cumsum()])
            alone = np.concatenate([[0.0], scores[row, own].numpy().cumsum()])
            removed = np.array(curve.removed, dtype=np.int64)
            damage = _interpolated(alone, together[removed], np.array(curve.damage[row]))
            result[row, own] = torch.from_numpy(_marginals(damage))
    return result


def _interpolated(at: np.ndarray, known: np.ndarray, damage: np.ndarray) -> np.ndarray:
    """``damage`` at each of ``at``, from values at ``known``: piecewise power laws, proportional beyond."""
    if not len(known):
        return at.copy()
    x = np.log(np.maximum(known, _LEAST))
    y = np.log(np.maximum.accumulate(np.maximum(damage, _LEAST)))
    wanted = np.log(np.maximum(at, _LEAST))
    found = np.interp(wanted, x, y) + np.minimum(wanted - x[0], 0) + np.maximum(wanted - x[-1], 0)
    result: np.ndarray = np.maximum.accumulate(np.exp(found))
    result[0] = 0.0
    return result


def _marginals(damage: np.ndarray) -> np.ndarray:
    """The steps of the largest convex curve below ``damage``; each slightly larger than the one before."""
    corners = [0]
    for place in range(1, len(damage)):
        corners.append(place)
        while len(corners) > 2:
            a, b, c = corners[-3:]
            if (damage[b] - damage[a]) * (c - b) < (damage[c] - damage[b]) * (b - a):
                break
            corners.pop(-2)
    steps = np.concatenate(
        [np.full(b - a, (damage[b] - damage[a]) / (b - a)) for a, b in itertools.pairwise(corners)]
        or [np.zeros(0)]
    )
    return np.asarray(steps * (1 + 1e-9 * np.arange(len(steps))))
