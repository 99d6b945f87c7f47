"""Distillation without labels: the pruned network learns the dense one's outputs (Hinton et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.checks import as_path, check_counts, check_object, check_positive
from disparse_structured.data.batches import batch_size, readable
from disparse_structured.data.calibration import gathered
from disparse_structured.data.call import marked_like
from disparse_structured.data.modes import plain_modes
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import OptionError, UnsupportedModelError
from disparse_structured.graph.named_tensors import device_of, digest, named_tensors
from disparse_structured.naming import rule_name
from disparse_structured.recovery.examples import Examples, check_shapes
from disparse_structured.recovery.recovery import Recover, Student, Subject
from disparse_structured.recovery.run import Course, Run
from disparse_structured.recovery.teacher import Teacher
from disparse_structured.recovery.views import are_images
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.training.checkpoint import Checkpoint

STEPS = 600
"""The number of steps if neither steps nor minutes are given."""

FILE = "distillation.pt"
"""The file in the folder that a run can be resumed from."""


@dataclass(frozen=True, eq=False)
class Distillation:
    """Trains the pruned network to match the dense network's outputs, after the refit, without labels.

    The loss is the mean over the tasks of the squared relative deviation of their outputs, each divided by
    its value after the refit; columns of several sizes count equally, as in the report. An eighth of the
    inputs is held out. On these, the deviations are measured 20 times. The best weights are kept, if no task
    is further from the dense network than after the refit; a deviation up to 1 % is always allowed. Inputs
    that the report is measured on are not used.

    Modules are in eval mode: the statistics of batch norms and dropout do not change. Parameters with
    ``requires_grad=False`` do not change. The optimizer is Adam (Kingma and Ba, ICLR 2015), with a step
    of each tensor in proportion to the size of its values, as in Adafactor (Shazeer and Stern, ICML 2018).
    The learning rate rises for 5 % of the steps and falls along a cosine.

    >>> import torch, disparse_structured as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).eval()
    >>> inputs = torch.randn(128, 4)
    >>> recover = ds.recovery.Distillation(inputs, steps=60)
    >>> found = ds.prune(model, inputs, macs=0.5, recover=recover).report.recovery
    >>> found.after["output"] <= found.before["output"]  # on the inputs held out
    True

    Args:
        images: inputs without labels, in any form that ``prune`` takes: a tensor ``[N, ...]``, a loader,
            ``ds.data.images("photos", ...)``. A few hundred are better than a few dozen.
        steps: how many steps to take, :data:`STEPS` by default.
        minutes: instead, about how long the distillation may take. A few steps are timed to choose the number
            of steps. For a given number of steps, the result does not depend on the time.
        samples: read at most this many inputs.
        batch: inputs in one step.
        lr: the highest step size, as a share of the root mean square of a tensor's values.
        vary: whether each step varies the inputs' zoom, position, contrast and brightness. It needs images:
            one input ``[N, C, H, W]`` with 1, 3 or 4 channels. Where it was measured, it did not lower the
            deviation.
        patience: end after this many measurements in a row without an improvement; None never
            ends early.
        memory: bytes for inputs, and for outputs of the dense network. Reading ends when the inputs fill
            it. If inputs are not varied, outputs are computed once and kept, as long as they fit into the
            rest.
        folder: where to keep the state of the run. A second call with the same arguments resumes it, and ends
            with the same bytes on a deterministic device.

    Raises:
        OptionError: an option is of the wrong kind or out of range, or both ``steps`` and ``minutes`` are
            given.
    """

    images: Any = field(repr=False)
    steps: int | None = None
    minutes: float | None = None
    samples: int = 1024
    batch: int = 16
    lr: float = 0.01
    vary: bool = False
    patience: int | None = 12
    memory: int = field(default=2 << 30, repr=False)
    folder: str | Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_counts(batch=self.batch, memory=self.memory)
        check_counts(2, samples=self.samples)
        check_positive(lr=self.lr)
        check_object("vary", self.vary, bool, "True or False")
        if self.steps is not None:
            check_counts(steps=self.steps)
        if self.patience is not None:
            check_counts(patience=self.patience)
        if self.minutes is not None:
            check_positive(minutes=self.minutes)
        if self.steps is not None and self.minutes is not None:
            raise OptionError(
                f"steps={self.steps} and minutes={self.minutes:g} both say how long to distill. Leave one "
                "of them out."
            )
        if self.folder is not None:
            as_path("folder", self.folder)

    def seconds(self, one_pass: float, /) -> float:
        """See :class:`~disparse_structured.recovery.recovery.Timed`; a backward pass counts for two."""
        if self.minutes is not None:
            return 60 * self.minutes
        return 3 * one_pass * self.batch * (self.steps or STEPS)

    @plain_modes()
    def prepare(self, subject: Subject, /) -> Recover:
        """Reads and checks the inputs, and returns a function that trains a network on them.

        Raises:
            BatchError: the inputs do not fit ``forward``, differ in shape, or are too few.
            UnsupportedModelError: no parameter of the dense network requires a gradient.
            OptionError: ``vary`` is true but the inputs are not images.
            LoadError: ``folder`` holds the state of another run.
        """
        model = subject.model
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UnsupportedModelError(
                f"no parameter of {type(model).__name__} requires a gradient, so nothing can be distilled. "
                "Call requires_grad_(True) on the parameters that may change."
            )
        with Isolation(subject.seed, device_of(model)):
            groups = gathered(
                model,
                readable(self.images),
                subject.to_inputs,
                limit=self.samples + sum(map(batch_size, subject.aside)),
                memory=self.memory,
                marked=lambda inputs: marked_like(inputs, subject.example_inputs),
            )
        for group in groups:
            check_shapes(group, subject.example_inputs)
        examples = Examples.of(groups, subject.aside, self.samples)
        images = all(map(are_images, groups))
        if self.vary and not images:
            raise OptionError(
                "vary=True needs images: one input [N, C, H, W] with 1, 3 or 4 channels. Leave it out."
            )
        room = self.memory - sum(map(_bytes, groups))
        file = None if self.folder is None else self._file(Path(self.folder), subject, examples)
        saved = None if file is None else file.read()

        def recover(student: Student) -> RecoveryFacts:
            exactly = student.batch is not None
            learned, held_out = examples.batches(student.batch or self.batch, subject.seed, exactly=exactly)
            teacher = Teacher(model, subject.tasks, room)
            run = Run(
                student,
                teacher,
                learned,
                held_out,
                self._course(),
                vary=self.vary,
                seed=subject.seed,
                progress=subject.progress,
                file=file,
            )
            return run(saved, rule_name(self), examples.samples, examples.checked)

        return recover

    def _course(self) -> Course:
        steps = STEPS if self.steps is None and self.minutes is None else self.steps
        return Course(steps, self.minutes, self.lr, self.patience)

    def _file(self, folder: Path, subject: Subject, examples: Examples) -> Checkpoint:
        identity = {
            "settings": rule_name(self),
            "seed": str(subject.seed),
            "tasks": str([task.name for task in subject.tasks]),
            "inputs": examples.digest,
            "dense network": digest(named_tensors(subject.model)[0]),
        }
        return Checkpoint(folder / FILE, identity)


def _bytes(inputs: tuple[Any, ...]) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))
