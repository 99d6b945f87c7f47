"""The smallest network for some of the tasks, verified on their outputs."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import fx, nn
from torch.utils import _pytree as pytree

from disparse_structured.data.call import call
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import TaskError, VerificationError
from disparse_structured.graph.capture import Capture, clone_if_tensor
from disparse_structured.graph.copies import copied, copied_in
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.report.text import plain_text
from disparse_structured.structure import Structure, analyse, count_macs, count_parameters
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task, check_tasks
from disparse_structured.verification.copy import TOLERANCES, Outputs, VerificationCopy

_LISTS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Left:
    """A module that no chosen task needs, and why ``forward`` cannot do without it."""

    module: str
    reason: str


@dataclass(frozen=True)
class Extracted:
    """What :func:`extract` returns.

    Args:
        model: the smaller network; the chosen tasks' selectors still apply to its output.
        tasks: the chosen ones.
        removed: the removed modules, by their names in the full model.
        left: the modules that no chosen task needs but that could not be removed.
        units_removed: how many units were removed that no chosen task reaches.
        parameters, macs: of the full model, and of the smaller one; MACs for one example.
        deviation: per task, the largest relative difference from the full model in ``dtype``.
    """

    model: nn.Module
    tasks: tuple[Task, ...]
    removed: tuple[str, ...]
    left: tuple[Left, ...]
    units_removed: int
    parameters: tuple[int, int]
    macs: tuple[int, int]
    deviation: dict[str, float]
    dtype: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"extracted: {', '.join(task.name for task in self.tasks)}", style="bold")
        for name, (before, after) in (("parameters", self.parameters), ("MACs", self.macs)):
            yield Text(f"{name}: {before:,} -> {after:,} ({after / max(before, 1):.1%})")
        yield Text(f"removed: {', '.join(self.removed) or 'no module'}, and {self.units_removed} units")
        for each in self.left:
            yield Text(f"left in place: {each.module}: {each.reason}", style="yellow")
        worst = max(self.deviation.values())
        yield Text(f"equal to the full model in {self.dtype}: worst deviation {worst:.1e}")

    def __str__(self) -> str:
        return plain_text(self)


@leaves_no_trace
def extract(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor,
    tasks: Sequence[Task],
    keep: Sequence[str],
) -> Extracted:
    """Build the smallest network for the tasks named in ``keep``, with the same outputs as in ``model``.

    Modules that the chosen outputs do not depend on are removed: deleted from a ``ModuleDict``,
    ``ModuleList`` or ``Sequential``, else replaced by a stub that computes nothing and returns None (or, if
    ``forward`` does not accept that, its input, or zeros of the example's shape). Every such step is tried
    on a copy without constant weights and kept only if the chosen outputs do not change. Then the units that
    no chosen task reaches are removed, by the same surgery as in pruning. Outputs of other tasks may be
    missing, None, or meaningless.

    Args:
        model: any module that ``torch.export`` can capture; it is left unchanged.
        example_inputs: the positional arguments of one forward pass, batch first.
        tasks: all tasks, or at least the chosen ones.
        keep: names of the tasks to keep.

    Raises:
        TaskError: ``keep`` is empty or names no task.
        VerificationError: the result differs from the full model on the chosen outputs.
        CaptureError, UnsupportedModelError: as from :func:`disparse_structured.analyse`.
    """
    chosen = _chosen(check_tasks(tasks), keep)
    structure = analyse(model, example_inputs, chosen)
    trial = _Trial(VerificationCopy.of(model, structure), chosen)
    needed = _needed(structure.capture)
    for name in reversed(list(_candidates(trial.model, needed))):
        trial.take_out(name)
    reduced = copied(model)
    for edit in trial.edits:
        edit.apply(reduced)
    reduced_structure = analyse(reduced, example_inputs, chosen)
    operation = apply(
        reduced, Plan.from_keep(reduced_structure, _reached(reduced_structure)), reduced_structure
    )
    result = operation.model
    deviation, dtype = _verify(model, result, trial.reference, chosen)
    return Extracted(
        model=result,
        tasks=chosen,
        removed=tuple(sorted(edit.name for edit in trial.edits)),
        left=tuple(sorted(trial.left, key=lambda each: each.module)),
        units_removed=int((~operation.plan.keep(reduced_structure)).sum()),
        parameters=(count_parameters(model), count_parameters(result)),
        macs=(count_macs(model, structure.example_inputs), count_macs(result, structure.example_inputs)),
        deviation=deviation,
        dtype=str(dtype),
    )


def _chosen(tasks: tuple[Task, ...], keep: Sequence[str]) -> tuple[Task, ...]:
    names = [task.name for task in tasks]
    unknown = [name for name in ([keep] if isinstance(keep, str) else keep) if name not in names]
    if isinstance(keep, str) or unknown or not keep:
        raise TaskError(
            f"keep={keep!r} does not list tasks to keep. The tasks are {names}; give a list of names."
        )
    return tuple(task for task in tasks if task.name in keep)


def _needed(captured: Capture) -> frozenset[str]:
    """The parameters and buffers that the tasks' outputs depend on."""
    returned = [node for nodes in captured.task_outputs(captured.outputs).values() for node in nodes]
    reached = {node for node in returned if isinstance(node, fx.Node)}
    sources = captured.effects.sources
    for node in reversed(captured.graph.nodes):
        if node in reached:
            reached.update(sources[node])
    return frozenset(captured.tensors[node.name] for node in reached if node.name in captured.tensors)


def _candidates(model: nn.Module, needed: frozenset[str]) -> Iterator[str]:
    """The outermost modules that hold tensors, none of them needed."""
    _, canonical = named_tensors(model)

    def visit(module: nn.Module, prefix: str) -> Iterator[str]:
        for key, child in module.named_children():
            name = f"{prefix}{key}"
            held = {canonical[each] for each in canonical if each.startswith(f"{name}.")}
            if held and not held & needed:
                yield name
            elif held:
                yield from visit(child, f"{name}.")

    return visit(model, "")


@dataclass(frozen=True)
class _Edit:
    """Removes the module ``name``: deletes it from its list, or puts ``stub`` in its place."""

    name: str
    stub: nn.Module | None

    def apply(self, model: nn.Module) -> None:
        owner, _, key = self.name.rpartition(".")
        parent = model.get_submodule(owner)
        if self.stub is not None:
            parent.add_module(key, copied(self.stub))
        elif isinstance(parent, nn.ModuleDict):
            del parent[key]
        else:
            assert isinstance(parent, nn.ModuleList | nn.Sequential)  # the others of _LISTS
            del parent[int(key)]


class _Trial:
    """Tries edits on a copy of the reference and keeps those that do not change the chosen outputs."""

    def __init__(self, reference: VerificationCopy, tasks: tuple[Task, ...]) -> None:
        self.reference, self._tasks = reference, tasks
        self.model = copied(reference.model)
        self.edits: list[_Edit] = []
        self.left: list[Left] = []

    def take_out(self, name: str) -> None:
        """Removes the module ``name``, or the parts that it can; notes why the rest stays."""
        reasons = []
        for edit in self._ways(name):
            reason = self._refused(edit)
            if reason is None:
                self.edits.append(edit)
                return
            reasons.append(reason)
        inner = [
            f"{name}.{key}"
            for key, child in self.model.get_submodule(name).named_children()
            if next(child.parameters(), None) is not None
        ]
        for each in reversed(inner):
            self.take_out(each)
        if not inner:
            self.left.append(Left(name, reasons[0]))

    def _ways(self, name: str) -> Iterator[_Edit]:
        if isinstance(self.model.get_submodule(name.rpartition(".")[0]), _LISTS):
            yield _Edit(name, None)
        yield _Edit(name, Absent())
        yield _Edit(name, PassThrough())
        shape = self._shape(name)
        if shape is not None:
            yield _Edit(name, Zeros(shape))

    def _refused(self, edit: _Edit) -> str | None:
        """Makes the edit; if the chosen outputs change or fail, undoes it and says what happened."""
        parent = self.model.get_submodule(edit.name.rpartition(".")[0])
        before = dict(parent._modules)
        edit.apply(self.model)
        try:
            deviation = self.reference.deviation(
                _outputs_of(self.model, self._tasks), _outputs_of(self.reference.model, self._tasks)
            )
            if max(deviation.values()) <= TOLERANCES[self.reference.dtype]:
                return None
            reason = "the outputs of the chosen tasks change"
        except Exception as error:  # whatever the user's forward raises without the module
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        parent._modules.clear()
        parent._modules.update(before)
        return reason

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the one tensor that the module returns, without the batch; None for anything else."""
        seen: list[Any] = []
        handle = self.model.get_submodule(name).register_forward_hook(
            lambda _, __, result: seen.append(result)
        )
        try:
            _outputs_of(self.model, self._tasks)(self.reference.inputs)
        finally:
            handle.remove()
        found = seen[0] if len(seen) == 1 else None
        return tuple(found.shape[1:]) if isinstance(found, torch.Tensor) and found.ndim else None


class Stub(nn.Module, abc.ABC):
    """Replaces a removed module."""

    @abc.abstractmethod
    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return nothing that a chosen task reads."""


class Absent(Stub):
    """Returns None."""

    def forward(self, *inputs: Any, **named: Any) -> None:
        """Return None."""


class PassThrough(Stub):
    """Returns its first input."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the first input."""
        return (*inputs, *named.values())[0]


class Zeros(Stub):
    """Returns zeros of the module's output shape for the example inputs, batch first."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Return zeros ``[B, *shape]``, of the type and on the device of the first tensor."""
        first = next(leaf for leaf in pytree.tree_leaves((inputs, named)) if isinstance(leaf, torch.Tensor))
        return first.new_zeros((first.shape[0], *self.shape))


def _outputs_of(model: nn.Module, tasks: Sequence[Task]) -> Callable[[tuple[Any, ...]], Outputs]:
    def run(inputs: tuple[Any, ...]) -> Outputs:
        with torch.no_grad():
            output = call(model, pytree.tree_map(clone_if_tensor, inputs))
        return {task.name: task.tensors(output) for task in tasks}

    return run


def _reached(structure: Structure) -> torch.Tensor:
    """Bool ``[units]``: what a task reaches, and what the rules about layer widths require."""
    reached = structure.reach.any(dim=0)
    if not structure.groups:
        return reached
    rules = Budget(macs=0.5, floor=0.0, min_width=1, round_to=1)  # only its rules about widths are read
    order = torch.arange(structure.units)
    return Widths.of(structure.groups, structure.constraints, rules, structure.reach, order).settle(reached)


def _verify(
    model: nn.Module, result: nn.Module, reference: VerificationCopy, tasks: Sequence[Task]
) -> tuple[dict[str, float], torch.dtype]:
    """How far ``result`` is from ``model``, with their own weights, in the reference's precision."""
    full, reduced = (copied_in(each, reference.dtype) for each in (model, result))
    for module in (*full.modules(), *reduced.modules()):
        module.training = False
    deviation = reference.deviation(_outputs_of(reduced, tasks), _outputs_of(full, tasks))
    task, worst = max(deviation.items(), key=lambda item: item[1])
    if not worst <= TOLERANCES[reference.dtype]:
        raise VerificationError(
            f"the extracted {type(model).__name__} differs from the full one: task {task!r} deviates by "
            f"{worst:.3g}. Your model is unchanged. Please report this model."
        )
    return deviation, reference.dtype
