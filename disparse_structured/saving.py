"""A pruned model as a folder: ``plan.json``, ``weights.safetensors``, ``report.json``. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.errors import LoadError
from disparse_structured.plan import Plan
from disparse_structured.report.pruning import PruningReport
from disparse_structured.structure import analyse
from disparse_structured.structure.analysis import attention_of, named_tensors
from disparse_structured.surgery import apply
from disparse_structured.tasks import Task

PLAN, WEIGHTS, REPORT = "plan.json", "weights.safetensors", "report.json"
_PLAIN = int | float | str | None


def save(folder: str | Path, model: nn.Module, plan: Plan, report: PruningReport) -> None:
    """Writes ``model`` (the result of ``plan``) into ``folder``, which is made if need be.

    Tied tensors are written once. Each file is replaced only when it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, _ = named_tensors(model)
    persistent = model.state_dict(keep_vars=True).keys()
    weights = {name: tensor.detach().contiguous() for name, tensor in tensors.items() if name in persistent}
    draft = folder / f".{WEIGHTS}.draft"
    save_file(weights, draft, metadata={"plan": plan.hash})
    os.replace(draft, folder / WEIGHTS)
    _write(folder / PLAN, plan.to_json())
    _write(folder / REPORT, report.to_json())


def extend_report(folder: str | Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Adds ``entries``, plain data, to the ``report.json`` of a folder that :func:`save` wrote.

    Returns:
        All that the report holds now.

    Raises:
        LoadError: there is no such report, or it is not JSON.
    """
    path = Path(folder) / REPORT
    document = {**_read(path), **entries}
    _write(path, json.dumps(document, indent=2, sort_keys=True))
    return document


def load(
    folder: str | Path, factory: Callable[[], nn.Module], inputs: tuple[Any, ...] | None = None
) -> nn.Module:
    """The pruned model of ``folder``: ``factory`` builds the dense one, the plan is replayed, weights loaded.

    A model that was pruned twice takes ``lambda: load(first_folder, factory)`` as the second's factory.

    Args:
        inputs: example inputs as given to ``prune``, where the report could not describe them.

    Raises:
        LoadError: a file is missing or does not belong to the others, or the weights do not fit.
        PlanError: the factory builds another model than the plan was made for.
    """
    folder = Path(folder)
    for name in (PLAN, WEIGHTS, REPORT):
        if not (folder / name).is_file():
            raise LoadError(f"{str(folder / name)!r} is missing. Give a folder that save() wrote.")
    plan = Plan.load(folder / PLAN)
    report = _read(folder / REPORT)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise LoadError(f"{str(folder / WEIGHTS)!r} is not a whole safetensors file: {error}.") from None
    if report.get("plan") != plan.hash:
        raise LoadError(
            f"{REPORT} in {str(folder)!r} belongs to plan {str(report.get('plan'))[:12]}…, {PLAN} is plan "
            f"{plan.hash[:12]}…. The folder mixes two runs; save again."
        )
    dense = factory()
    everything = Task("output", lambda output: output)
    structure = analyse(
        dense,
        inputs or example_inputs(report["inputs"]),
        [everything],
        attention=attention_of(plan.fingerprint),
    )
    model = apply(dense, plan, structure, verify=False).model
    _load_weights(model, weights, folder)
    return model


def describe_inputs(inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Example inputs as JSON: shapes and types of tensors, other values as they are.

    Types that JSON has no word for are named instead; :func:`example_inputs` then asks for the inputs.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    odd = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor | _PLAIN)]
    try:
        tree = pytree.treespec_dumps(spec)
    except NotImplementedError as error:  # torch's answer for containers that it cannot write down
        odd.append(str(error).partition(" because ")[0])
    if odd:
        return {"unknown": odd}
    described = [
        {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
        if isinstance(leaf, torch.Tensor)
        else {"value": leaf}
        for leaf in leaves
    ]
    return {"leaves": described, "tree": tree}


def example_inputs(description: dict[str, Any]) -> tuple[Any, ...]:
    """Inputs of the shapes and types that :func:`describe_inputs` wrote; tensors are zeros."""
    if "unknown" in description:
        raise LoadError(
            f"the model's inputs could not be written down ({', '.join(description['unknown'])}). "
            "Pass inputs=, the example inputs that the model was pruned with, to load()."
        )
    leaves = [
        torch.zeros(leaf["shape"], dtype=getattr(torch, leaf["dtype"])) if "shape" in leaf else leaf["value"]
        for leaf in description["leaves"]
    ]
    return tuple(pytree.tree_unflatten(leaves, pytree.treespec_loads(description["tree"])))


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


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text + "\n", encoding="utf-8", newline="\n")
    os.replace(draft, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise LoadError(f"{str(path)!r} cannot be read as JSON: {error}. Save the model again.") from None
