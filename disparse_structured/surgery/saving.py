"""A pruned model as a folder: ``plan.json``, ``weights.safetensors``, ``report.json``. No pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.checks import as_path, check_callable, check_object, shown
from disparse_structured.data.batches import as_arguments
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import DifferentModelWarning, LoadError, OptionError
from disparse_structured.files import made_folder, replacing, write_text
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.graph.named_tensors import device_of, named_tensors
from disparse_structured.graph.side_effects import undone
from disparse_structured.graph.supported import check_supported
from disparse_structured.report.pruning import GraphFacts, PruningReport
from disparse_structured.report.schemas import document_text, read_document
from disparse_structured.structure import analyse
from disparse_structured.structure.structure import attention_of, form_of, outputs_of
from disparse_structured.surgery.graph import rebuild_graph
from disparse_structured.surgery.module import apply
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.surgery.summaries import computes_otherwise, probe_of
from disparse_structured.surgery.unused import without
from disparse_structured.tasks import Task, check_tasks

PLAN, WEIGHTS, REPORT = "plan.json", "weights.safetensors", "report.json"
LARGEST = 2**32
"""Bytes of the largest tensor that is made for the inputs that a report describes."""

_PLAIN = int | float | str | None


def save(
    folder: str | Path, model: nn.Module, plan: Plan, report: PruningReport, inputs: tuple[Any, ...]
) -> None:
    """Write ``model`` (the result of ``plan``) into ``folder``, which is created if needed.

    Tied tensors are written once. Each file is replaced only when it is complete. ``report.json`` also gets
    the SHA-256 checksum of the weights and a summary of what the model computes for tensors like those of
    ``inputs``; :func:`load` checks both.

    Raises:
        SaveError: the folder or a file cannot be written.
    """
    folder = made_folder(as_path("folder", folder))
    tensors, _ = named_tensors(model)
    persistent = model.state_dict(keep_vars=True).keys()
    weights = {name: tensor.detach().contiguous() for name, tensor in tensors.items() if name in persistent}
    with replacing(folder / WEIGHTS) as draft:
        try:
            save_file(weights, draft, metadata={"plan": plan.hash})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        checksum = _checksum(draft)
    write_text(folder / PLAN, f"{plan.to_json()}\n")
    document = json.loads(report.to_json())
    document["weights_sha256"] = checksum
    document["computes"] = (
        {"reason": "the model's inputs cannot be stored"}
        if "unknown" in report.inputs
        else probe_of(model, inputs)
    )
    _write_report(folder / REPORT, document)


def extend_report(folder: str | Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``entries``, plain data, to the ``report.json`` of a folder that :func:`save` wrote.

    Returns:
        The complete updated report.

    Raises:
        LoadError: there is no such report, or it is damaged.
    """
    path = Path(folder) / REPORT
    document = {**read_document(path, "report"), **entries}
    _write_report(path, document)
    return document


def load(
    folder: str | Path,
    factory: Callable[[], nn.Module],
    *,
    tasks: Sequence[Task | str] | None = None,
    example_inputs: tuple[Any, ...] | torch.Tensor | Mapping[str, Any] | None = None,
    entry_points: EntryPoints | None = None,
) -> nn.Module:
    """Load the pruned model of ``folder``, in eval mode.

    ``factory`` builds the dense model, the plan is replayed on it, and the weights are loaded.

    A pruned graph is loaded as one: it returns ``{task: tensor}`` and takes the same batches as before. Its
    other sizes are those of ``example_inputs``: pass inputs of another image size or length, which the dense
    model takes, and the graph is made for that size. For a model that was pruned twice, pass
    ``lambda: load(first_folder, factory)`` as the second's factory.

    Args:
        example_inputs: the arguments of one forward pass, if the report could not describe them, or if a
            pruned graph is to take inputs of another shape.
        tasks: the tasks as given to ``prune``, needed if the model is a pruned graph and the output of one
            of them is picked by a callable: the folder holds keys, indices and paths, but no code.
        entry_points: as given to :func:`~disparse_structured.analyse`, needed if one of them is a function.

    Raises:
        OptionError: an argument is of the wrong kind.
        UnsupportedModelError: the factory returns no module, or a wrapped or quantized one.
        LoadError: a file is missing, damaged or does not belong to the others, or the weights or tasks do
            not fit.
        PlanError: the factory builds a different model from the one the plan was made for.
        TaskError: a task picks nothing from what the factory's model returns.

    Warns:
        DifferentModelWarning: the model does not compute what the saved one computed. Nothing is compared if
            a graph is loaded for another size, or the saved model drew random numbers.
    """
    folder = as_path("folder", folder)
    if isinstance(factory, nn.Module):
        raise OptionError(
            f"factory is a {type(factory).__name__} itself. Pass a function that builds the dense model."
        )
    if not isinstance(factory, type):  # a class builds its models
        check_callable("factory", factory, 0, "Pass a function that builds the dense model.")
    for name in (PLAN, WEIGHTS, REPORT):
        if not (folder / name).is_file():
            raise LoadError(f"{str(folder / name)!r} is missing. Give a folder that save() wrote.")
    plan = Plan.load(folder / PLAN)
    tasks = None if tasks is None else _in_order(check_tasks(tasks), plan)
    report = read_document(folder / REPORT, "report")
    if "inputs" not in report:
        raise LoadError(f"{REPORT} in {str(folder)!r} has no entry 'inputs'. Save the model again.")
    if report.get("plan") != plan.hash:
        raise LoadError(
            f"{REPORT} in {str(folder)!r} belongs to plan {str(report.get('plan'))[:12]}…, {PLAN} is plan "
            f"{plan.hash[:12]}…. The folder mixes two runs; save again."
        )
    checksum = _checksum(folder / WEIGHTS)
    if report.get("weights_sha256", checksum) != checksum:
        raise LoadError(
            f"{str(folder / WEIGHTS)!r} is damaged, or not the file that was saved: its SHA-256 is "
            f"{checksum[:12]}…, {REPORT} says {str(report['weights_sha256'])[:12]}…. Copy the folder again, "
            "or save the model again."
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise LoadError(f"{str(folder / WEIGHTS)!r} is not a complete safetensors file: {error}.") from None
    dense = factory()
    check_supported(dense)
    inputs = (
        described_inputs(report["inputs"]) if example_inputs is None else as_arguments(dense, example_inputs)
    )
    if report.get("dropped"):
        dense = without(dense, [each["module"] for each in report["dropped"]])
    with undone(dense):
        if weights.keys() - named_tensors(dense)[0].keys():
            _call_once(dense, inputs)
        model = (
            _pruned_graph(dense, plan, inputs, tasks, report, folder)
            if form_of(plan.fingerprint) == "graph"
            else _pruned_module(dense, plan, inputs, tasks, report, entry_points)
        )
    _load_weights(model, weights, folder)
    saved = described_inputs(report["inputs"]) if "unknown" not in report["inputs"] else None
    elsewhere = saved is not None and isinstance(model, PrunedGraph) and not model.takes(saved)
    if saved is not None and not elsewhere and computes_otherwise(model, saved, report.get("computes")):
        warnings.warn(
            f"the model loaded from {str(folder)!r} does not compute what the saved model computed: "
            "the weights fit, but the factory's model uses them differently (a different activation, "
            "scale or normalization, for example). Check the factory.",
            DifferentModelWarning,
            stacklevel=2,
        )
    return model.eval()


def _call_once(dense: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Runs ``dense`` once, because some networks register buffers then; errors show later."""
    with contextlib.suppress(Exception), eval_mode(dense), torch.no_grad(), Isolation(0, device_of(dense)):
        call(dense, inputs)


def _pruned_module(
    dense: nn.Module,
    plan: Plan,
    inputs: tuple[Any, ...],
    tasks: Sequence[Task] | None,
    report: Mapping[str, Any],
    entry_points: EntryPoints | None,
) -> nn.Module:
    outputs = outputs_of(plan.fingerprint)
    # Unless other outputs may shrink, a module is cut the same way whatever its tasks.
    chosen = _tasks(tasks, plan, report) if outputs == "tasks" else [Task("output", ())]
    structure = analyse(
        dense,
        inputs,
        chosen,
        attention=attention_of(plan.fingerprint),
        outputs=outputs,
        entry_points=_entry_points(entry_points, report),
    )
    return apply(dense, plan, structure, verify=False).model


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


def _pruned_graph(
    dense: nn.Module,
    plan: Plan,
    inputs: tuple[Any, ...],
    tasks: Sequence[Task] | None,
    report: Mapping[str, Any],
    folder: Path,
) -> nn.Module:
    try:
        facts = GraphFacts(**report["graph"])
    except (KeyError, TypeError) as error:
        raise LoadError(
            f"{REPORT} in {str(folder)!r} does not say how the pruned graph was made "
            f"({type(error).__name__}: {error}). Save the model again."
        ) from None
    structure = analyse(
        dense,
        inputs,
        _tasks(tasks, plan, report),
        form="graph",
        attention=attention_of(plan.fingerprint),
        outputs=outputs_of(plan.fingerprint),
    )
    plan.check(structure)  # checks that all its groups exist
    reach = {group.name: group.reach for group in structure.groups}
    for group in plan.groups:
        if group.reach != reach[group.name]:
            raise LoadError(
                f"channel group {group.name!r} reaches {_listed(reach[group.name])}, but when it was saved "
                f"{_listed(group.reach)}: the tasks pick other outputs. Let the factory's model return what "
                "the pruned one's did, and pass the tasks that it was pruned with."
            )
    return rebuild_graph(dense, plan, structure, examples=facts.examples, any_batch=facts.any_batch)


def _tasks(tasks: Sequence[Task] | None, plan: Plan, report: Mapping[str, Any]) -> list[Task]:
    """``tasks``, or those that the report describes."""
    if tasks is not None:
        return list(tasks)
    try:
        selectors = {name: report["selectors"][name] for name in plan.tasks}
    except (KeyError, TypeError):
        raise LoadError(
            f"{REPORT} does not say what picks the tasks' outputs. Save the model again."
        ) from None
    callables = [name for name, selector in selectors.items() if selector is None]
    if callables:
        raise LoadError(
            f"the output of {_listed(callables)} is picked by a callable, which a folder cannot hold. Pass "
            "tasks=, the tasks that the model was pruned with, to load()."
        )
    # JSON has no tuples.
    return [Task(name, tuple(each) if isinstance(each, list) else each) for name, each in selectors.items()]


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


def describe_inputs(inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Describe example inputs as JSON: shapes and types of tensors, other values unchanged.

    Types that JSON cannot express are named instead; :func:`described_inputs` then asks for the inputs.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    unknown = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor | _PLAIN)]
    unknown += [repr(leaf) for leaf in leaves if isinstance(leaf, float) and not math.isfinite(leaf)]
    try:
        tree = pytree.treespec_dumps(spec)
    except NotImplementedError as error:  # torch raises it for containers that it cannot serialize
        unknown.append(str(error).partition(" because ")[0])
    if unknown:
        return {"unknown": unknown}
    described = [
        {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
        if isinstance(leaf, torch.Tensor)
        else {"value": leaf}
        for leaf in leaves
    ]
    return {"leaves": described, "tree": tree}


def described_inputs(description: dict[str, Any]) -> tuple[Any, ...]:
    """Build inputs of the shapes and types that :func:`describe_inputs` wrote; tensors are zeros."""
    if "unknown" in description:
        raise LoadError(
            f"the model's inputs could not be saved ({', '.join(description['unknown'])}). "
            "Pass example_inputs=, the arguments of one forward pass, to load()."
        )
    try:
        leaves = [_leaf(leaf) for leaf in description["leaves"]]
        if "__enum__" in description["tree"]:  # torch would import what it names
            raise ValueError("the tree names an enum")
        return tuple(pytree.tree_unflatten(leaves, pytree.treespec_loads(description["tree"])))
    except Exception as error:  # what torch raises for other text has no common base class
        raise LoadError(
            f"the inputs that {REPORT} describes are damaged ({type(error).__name__}: {error}). Pass "
            "example_inputs=, the arguments of one forward pass, to load()."
        ) from None


def _leaf(leaf: Mapping[str, Any]) -> Any:
    """A tensor of zeros, or the value; sizes and types are checked before anything is allocated."""
    if "shape" not in leaf:
        return leaf["value"]
    shape, dtype = leaf["shape"], vars(torch).get(leaf["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{shown(leaf['dtype'])} is no type of tensors")
    if math.prod(shape) * dtype.itemsize > LARGEST:
        raise ValueError(f"a tensor of shape {shown(shape)} has more than {LARGEST:,} bytes")
    return torch.zeros(shape, dtype=dtype)


def _load_weights(model: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    tensors, canonical = named_tensors(model)
    for name, tensor in weights.items():
        known = tensors.get(name)
        if known is not None and known.dtype != tensor.dtype:
            raise LoadError(
                f"{name!r} was saved as {tensor.dtype}, the factory builds {known.dtype}. "
                f"Let the factory return the model in {tensor.dtype}."
            )
    persistent = model.state_dict().keys()
    state = {name: weights[canonical[name]] for name in persistent if canonical.get(name) in weights}
    state.update({name: tensor for name, tensor in weights.items() if name not in persistent})
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise LoadError(f"the weights in {str(folder)!r} do not fit the factory's model: {error}") from None


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_report(path: Path, document: Mapping[str, Any]) -> None:
    write_text(path, f"{document_text(document)}\n")
