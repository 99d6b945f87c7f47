"""A saved folder: its files, whether they belong together, and the pruned model built from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from disparse_structured.checks import check_object
from disparse_structured.data.batches import as_arguments
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import LoadError
from disparse_structured.files import checksum
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.graph.named_tensors import device_of, named_tensors, persistent_tensors
from disparse_structured.graph.side_effects import undone
from disparse_structured.graph.supported import check_supported
from disparse_structured.report.pruning import GraphFacts
from disparse_structured.report.schemas import read_document
from disparse_structured.structure import analyse
from disparse_structured.structure.structure import attention_of, form_of, outputs_of
from disparse_structured.surgery.graph import rebuild_graph
from disparse_structured.surgery.module import apply
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.surgery.stored_inputs import described_inputs
from disparse_structured.surgery.summaries import computes_otherwise, drawn_inputs
from disparse_structured.surgery.unused import without
from disparse_structured.tasks import Task, check_tasks

PLAN, WEIGHTS, REPORT = "plan.json", "weights.safetensors", "report.json"


@dataclass(frozen=True, eq=False)
class Saved:
    """A folder whose plan and report belong together.

    Args:
        folder: its path.
        plan: the content of ``plan.json``.
        report: the content of ``report.json``.
    """

    folder: Path
    plan: Plan
    report: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Saved:
        """Reads the JSON files of ``folder``.

        Raises:
            LoadError: a file is missing or damaged, or the two come from different runs.
            PlanError: the plan is damaged.
        """
        folder = Path(folder)
        for name in (PLAN, WEIGHTS, REPORT):
            if not (folder / name).is_file():
                raise LoadError(f"{str(folder / name)!r} is missing. Give a folder that save() wrote.")
        plan = Plan.load(folder / PLAN)
        report = read_document(folder / REPORT, "report")
        if "inputs" not in report:
            raise LoadError(f"{REPORT} in {str(folder)!r} has no entry 'inputs'. Save the model again.")
        if report.get("plan") != plan.hash:
            raise LoadError(
                f"{REPORT} in {str(folder)!r} belongs to plan {str(report.get('plan'))[:12]}…, {PLAN} is "
                f"plan {plan.hash[:12]}…. The folder mixes two runs; save again."
            )
        return cls(folder, plan, report)

    @property
    def form(self) -> str:
        """``"module"`` or ``"graph"``."""
        return form_of(self.plan.fingerprint)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights by name.

        Raises:
            LoadError: the file is damaged, or not the one that was saved with the report.
        """
        path = self.folder / WEIGHTS
        found = checksum(path)
        if self.report.get("weights_sha256", found) != found:
            raise LoadError(
                f"{str(path)!r} is damaged, or not the file that was saved: its SHA-256 is "
                f"{found[:12]}…, {REPORT} says {str(self.report['weights_sha256'])[:12]}…. Copy the folder "
                "again, or save the model again."
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise LoadError(f"{str(path)!r} is not a complete safetensors file: {error}.") from None

    def inputs(self) -> tuple[Any, ...]:
        """Arguments of one forward pass with values like the example's.

        Raises:
            LoadError: the report could not describe them, or its description is damaged.
        """
        described = described_inputs(self.report["inputs"])
        try:
            return drawn_inputs(described, self.report.get("computes"))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise LoadError(
                f"{REPORT} in {str(self.folder)!r} does not say which inputs the model was saved with "
                f"({type(error).__name__}: {error}). Save the model again."
            ) from None

    def tasks(self, given: Sequence[Task | str] | None = None) -> list[Task]:
        """``given`` in the order of the plan, or the tasks that the report describes.

        Raises:
            LoadError: the output of a task is picked by a callable, or ``given`` has other tasks.
        """
        if given is not None:
            return _in_order(check_tasks(given), self.plan)
        try:
            selectors = {name: self.report["selectors"][name] for name in self.plan.tasks}
        except (KeyError, TypeError):
            raise LoadError(
                f"{REPORT} does not say what picks the tasks' outputs. Save the model again."
            ) from None
        callables = [name for name, selector in selectors.items() if selector is None]
        if callables:
            raise LoadError(
                f"the output of {_listed(callables)} is picked by a callable, which a folder cannot hold. "
                "Pass tasks=, the tasks that the model was pruned with, to load()."
            )
        # JSON has no tuples.
        return [
            Task(name, tuple(each) if isinstance(each, list) else each) for name, each in selectors.items()
        ]

    def model(
        self,
        factory: Callable[[], nn.Module],
        *,
        tasks: Sequence[Task | str] | None = None,
        example_inputs: tuple[Any, ...] | torch.Tensor | Mapping[str, Any] | None = None,
        entry_points: EntryPoints | None = None,
    ) -> nn.Module:
        """The pruned model in eval mode; see :func:`disparse_structured.load`."""
        chosen = None if tasks is None else _in_order(check_tasks(tasks), self.plan)
        weights = self.weights()
        dense = factory()
        check_supported(dense)
        inputs = (
            described_inputs(self.report["inputs"])
            if example_inputs is None
            else as_arguments(dense, example_inputs)
        )
        if self.report.get("dropped"):
            dense = without(dense, [each["module"] for each in self.report["dropped"]])
        with undone(dense):
            if weights.keys() - named_tensors(dense)[0].keys():
                _call_once(dense, inputs)
            model = (
                self._graph(dense, inputs, chosen)
                if self.form == "graph"
                else self._module(dense, inputs, chosen, entry_points)
            )
        _load_weights(model, weights, self.folder)
        return model.eval()

    def computes_otherwise(self, model: nn.Module) -> bool | None:
        """Whether ``model`` computes something other than the saved one; None if it cannot be told."""
        if "unknown" in self.report["inputs"]:
            return None
        inputs = described_inputs(self.report["inputs"])
        if isinstance(model, PrunedGraph) and not model.takes(inputs):
            return None
        return computes_otherwise(model, inputs, self.report.get("computes"))

    def _module(
        self,
        dense: nn.Module,
        inputs: tuple[Any, ...],
        tasks: Sequence[Task | str] | None,
        entry_points: EntryPoints | None,
    ) -> nn.Module:
        outputs = outputs_of(self.plan.fingerprint)
        # Unless other outputs may shrink, a module is cut the same way whatever its tasks.
        chosen = self.tasks(tasks) if outputs == "tasks" else [Task("output", ())]
        structure = analyse(
            dense,
            inputs,
            chosen,
            attention=attention_of(self.plan.fingerprint),
            outputs=outputs,
            entry_points=_entry_points(entry_points, self.report),
        )
        return apply(dense, self.plan, structure, verify=False).model

    def _graph(
        self, dense: nn.Module, inputs: tuple[Any, ...], tasks: Sequence[Task | str] | None
    ) -> nn.Module:
        try:
            facts = GraphFacts(**self.report["graph"])
        except (KeyError, TypeError) as error:
            raise LoadError(
                f"{REPORT} in {str(self.folder)!r} does not say how the pruned graph was made "
                f"({type(error).__name__}: {error}). Save the model again."
            ) from None
        plan = self.plan
        structure = analyse(
            dense,
            inputs,
            self.tasks(tasks),
            form="graph",
            attention=attention_of(plan.fingerprint),
            outputs=outputs_of(plan.fingerprint),
        )
        plan.check(structure)  # checks that all its groups exist
        reach = {group.name: group.reach for group in structure.groups}
        for group in plan.groups:
            if group.reach != reach[group.name]:
                raise LoadError(
                    f"channel group {group.name!r} reaches {_listed(reach[group.name])}, but when it was "
                    f"saved {_listed(group.reach)}: the tasks pick other outputs. Let the factory's model "
                    "return what the pruned one's did, and pass the tasks that it was pruned with."
                )
        return rebuild_graph(dense, plan, structure, examples=facts.examples, any_batch=facts.any_batch)


def _call_once(dense: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Runs ``dense`` once, because some networks register buffers then; errors are raised later."""
    with contextlib.suppress(Exception), eval_mode(dense), torch.no_grad(), Isolation(0, device_of(dense)):
        call(dense, inputs)


def _entry_points(given: EntryPoints | None, report: Mapping[str, Any]) -> EntryPoints:
    """``given``, or the entry points that the report describes."""
    known: Mapping[str, Any] = report.get("entry_points", {})
    if given is not None:
        check_object("entry_points", given, Mapping, "a dict by name")
        if set(given) != set(known):
            raise LoadError(
                f"entry_points= has {sorted(given)}, but the model was pruned with {sorted(known)}. "
                "Pass those."
            )
        return given
    functions = [name for name, described in known.items() if described is None]
    if functions:
        raise LoadError(
            f"the entry points {functions} are functions, which a folder cannot hold. Pass entry_points=, "
            "those that the model was pruned with, to load()."
        )
    return {name: described_inputs(described) for name, described in known.items()}


def _in_order(tasks: Sequence[Task], plan: Plan) -> list[Task]:
    """``tasks`` in the order of the plan, which is that of the outputs."""
    given = {task.name: task for task in tasks}
    if set(given) != set(plan.tasks):
        raise LoadError(
            f"tasks= has {_listed(list(given))}, but the model was pruned for {_listed(plan.tasks)}. Pass "
            "the tasks that it was pruned with."
        )
    return [given[name] for name in plan.tasks]


def _listed(tasks: Sequence[str]) -> str:
    return f"{'tasks' if len(tasks) > 1 else 'task'} {', '.join(map(repr, tasks))}" if tasks else "no task"


def _load_weights(model: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    tensors = persistent_tensors(model)
    for name, tensor in weights.items():
        known = tensors.get(name)
        if known is not None and known.dtype != tensor.dtype:
            raise LoadError(
                f"{name!r} was saved as {tensor.dtype}, the factory builds {known.dtype}. "
                f"Let the factory return the model in {tensor.dtype}."
            )
    wrong = [
        *(f"{name!r} is missing" for name in tensors if name not in weights),
        *(f"the model has no {name!r}" for name in weights if name not in tensors),
        *(
            f"{name!r} was saved as {list(weights[name].shape)}, the model has {list(tensor.shape)}"
            for name, tensor in tensors.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise LoadError(
            f"the weights in {str(folder)!r} do not fit the factory's model: {'; '.join(wrong[:5])}{more}."
        )
    # Not by load_state_dict, because a model may have a state of its own that says less than its tensors.
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])
