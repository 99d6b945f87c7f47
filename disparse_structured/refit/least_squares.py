"""Recovers accuracy without labels or training: every layer is fitted to what the dense one computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured.checks import check_counts, check_object, check_positive
from disparse_structured.data.batches import ToInputs
from disparse_structured.data.calibration import Calibration
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import OptionError, PlanError
from disparse_structured.graph.copies import copied
from disparse_structured.graph.named_tensors import device_of, named_tensors
from disparse_structured.graph.schedule import Step
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.naming import brief, rule_name
from disparse_structured.progress import advancing
from disparse_structured.refit.context import RefitContext, RefitMethod, check_settings
from disparse_structured.refit.deviation import deviations
from disparse_structured.refit.folding import Merging
from disparse_structured.refit.folds import folds
from disparse_structured.refit.lockstep import MEMORY, State
from disparse_structured.refit.regression import RIDGES, Shape
from disparse_structured.refit.shifts import shifted
from disparse_structured.report.deviation import DeviationFacts
from disparse_structured.report.refit import RefitFacts
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import structure_for_batch
from disparse_structured.structure.structure import check_described


@dataclass(frozen=True)
class LeastSquares:
    """Fits the kept weights of every layer, with a constant, to the dense network's pre-activation.

    Layer by layer, in execution order, what the dense network computes is regressed on the masked network's
    own input, as in channel pruning (He, Zhang and Sun, ICCV 2017, also for ``streams``: section 3.3). The
    ridge pulls toward the current weights. Ridges are chosen for each output by two-fold cross-validation,
    and an output is left unchanged where none lowers the error on held-out data. The constant goes into the
    bias, or the running mean of the next batch norm; without either, none is fitted.

    Peak memory beyond ``memory`` and the networks: with ``n = min(features, rows)``, about four matrices of
    ``n x n`` numbers, of 8 bytes up to ``n`` = 4,096 and of 4 beyond, and the rows themselves where they are
    fewer than the features. For more than 8,192 features, at most 8,192 rows are taken: a 3x3 convolution
    over 2,048 channels (18,432 features) peaks at 3.4 GiB, with the activations of 64 images and their
    copies.

    Args:
        ridges: candidate ridges, in units of the mean of the Gram matrix's diagonal.
        rows: rows (examples times positions) for each unknown of an output and each of the two folds, where
            there are as many; where there are more, they are drawn at random.
        streams: whether the last branch of a sum compensates for the errors of the others.
        merge: whether to also try weights in which each removed channel is merged into the most similar
            kept one, as what the ridge pulls toward, and as they are; see
            :class:`disparse_structured.refit.ModelFolding`.
        shifts: extra copies of every image, shifted by a few pixels, to fit on. There are none for inputs
            other than images ``[N, C, H, W]`` alone, and fewer for many large images.
        memory: bytes of activations of both networks to hold in memory; more are held in files.
        seed: draws the positions to fit on.
    """

    ridges: tuple[float, ...] = RIDGES
    rows: int = 8
    streams: bool = True
    merge: bool = False
    shifts: int = 3
    memory: int = MEMORY
    seed: int = 0

    def __post_init__(self) -> None:
        check_object("ridges", self.ridges, tuple, "a tuple of numbers", "Pass one such as (0.01, 0.1).")
        if not self.ridges:
            raise OptionError("ridges=() is empty. Pass at least one.")
        check_positive(**{f"ridges[{number}]": ridge for number, ridge in enumerate(self.ridges)})
        check_object("streams", self.streams, bool, "True or False")
        check_object("merge", self.merge, bool, "True or False")
        check_counts(rows=self.rows)
        check_settings(self.memory, self.shifts, self.seed)

    def __repr__(self) -> str:
        return brief(self)

    def visit(self, work: RefitContext, step: Step) -> None:
        """Refit ``step``; see :class:`disparse_structured.refit.context.RefitMethod`."""
        contraction = work.contraction(step)
        if contraction is None:
            return
        share, rows = work.share(contraction, step, self.rows)
        groups, outputs = contraction.outputs.shape
        shape = Shape(groups, outputs, contraction.features, bool(contraction.bias))
        weight = work.state[contraction.weight]
        known = folds(shape, rows, weight.dtype, weight.device)
        merging = Merging.of(work, contraction) if self.merge else None
        scale = 0.0
        for sample in work.samples(contraction, step, share, self.streams):
            known.add(sample.fold, sample.inputs, sample.residuals)
            scale += float(sample.target.norm()) ** 2
            if merging is not None:
                merging.add(sample)
        centers = (None,) if merging is None else (None, merging.center())
        work.conclude(contraction, known, rows, scale, (None, *self.ridges), centers)


@dataclass(frozen=True, eq=False)
class Refit:
    """``model`` has the dense shapes; :func:`disparse_structured.surgery.module.apply` prunes it.

    ``deviation`` is that of its outputs from the dense network's, before anything is removed physically.
    """

    model: nn.Module
    facts: RefitFacts
    deviation: DeviationFacts


@leaves_no_trace
def refit(
    model: nn.Module,
    structure: Structure,
    keep: Tensor,
    data: Iterable[Any] | Calibration,
    *,
    method: RefitMethod = LeastSquares(),
    to_inputs: ToInputs | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Refit:
    """Return a dense-shaped copy of ``model`` whose masked twin is closest to the dense network.

    :func:`disparse_structured.surgery.module.apply` prunes it to the small network. No labels are read. Of 16
    or more examples, about an eighth is set aside to measure the outputs on, before and after. The model
    itself, its modes and the random states are unchanged. The same seed gives the same weights on the same
    machine with the same number of threads: sums in another order differ in the last bits.

    Args:
        model: the dense model that ``structure`` describes; it is run in eval mode.
        keep: bool ``[units]``, True = keep.
        data: batches as a loader yields them, read once, or a :class:`Calibration`.
        method: how layers are refit: :class:`LeastSquares`, or the cheaper
            :class:`~disparse_structured.refit.Affine`,
            :class:`~disparse_structured.refit.BatchNormStatistics` and
            :class:`~disparse_structured.refit.ModelFolding`.
        to_inputs: maps a batch to the tuple of ``forward``'s arguments; by default
            :func:`disparse_structured.data.batches.model_inputs`.
        limit: read no more examples than this; a :class:`Calibration` is used unchanged.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere).

    Raises:
        PlanError: ``keep`` is not bool ``[units]``, or the structure is not that of ``model``.
        BatchError: too few examples, examples of different shapes, examples or task outputs that are not
            finite, batches that the model rejects or with which it has other units; no disk space for
            activations beyond ``memory``.
    """
    if keep.dtype != torch.bool or keep.shape != (structure.units,):
        raise PlanError(
            f"keep is {keep.dtype} {list(keep.shape)}, expected torch.bool [{structure.units}]: "
            "one entry per unit of the structure, True = keep."
        )
    keep = keep.cpu()
    result = copied(model)
    tensors, _ = named_tensors(result)
    dense: State = {name: tensor.detach() for name, tensor in tensors.items()}
    check_described(dense, structure)
    state = dict(dense)
    with Isolation(method.seed, device_of(model)):
        calibration = (
            data
            if isinstance(data, Calibration)
            else Calibration.of(model, data, to_inputs, limit=limit, marked=structure.marked)
        )
        described = structure_for_batch(structure, model, calibration.chunks[0])
        # An even number of chunks each time, so that an image and its copies are in the same fold.
        chunks = [*calibration.chunks, *shifted(calibration.chunks, method.shifts, method.seed)]
        work = RefitContext(described, state, keep, chunks, method)
        with advancing("refit", len(work.walk.steps), progress) as advance:

            def visit(step: Step) -> None:
                work.visit(step)
                advance()

            work.walk.run(visit)
        cut, final = deviations(described, keep, calibration, dense, (dense, state))
    with torch.no_grad():
        for name, tensor in tensors.items():
            if state[name] is not dense[name]:
                tensor.copy_(state[name])
    moved = DeviationFacts.of(calibration.samples, calibration.checked, cut, final)
    facts = RefitFacts(
        rule_name(method), calibration.samples, calibration.checked,
        tuple(work.layers), tuple(work.skipped), moved.cut, moved.final,
    )  # fmt: skip
    return Refit(result, facts, moved)
