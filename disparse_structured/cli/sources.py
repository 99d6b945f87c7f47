"""What the command line names: the model, its weights and its tasks."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from disparse_structured.cli import values
from disparse_structured.cli.data import random_example
from disparse_structured.cli.lookup import find, user_code
from disparse_structured.cli.usage import UsageError, reason
from disparse_structured.errors import DisparseWarning, LoadError
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import Structure, analyse
from disparse_structured.tasks import Task, check_tasks

_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
    """The module that ``spec`` names or that the factory ``spec`` returns, with the weights of the file.

    Raises:
        UsageError: the factory does not exist, fails, or returns something other than a module.
        LoadError: the file cannot be read, or does not fit the module exactly.
    """
    model = find(spec, "--model")
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise UsageError(
                f"--model {spec!r} is of type {type(model).__name__}. Name a factory: a function without "
                "arguments that returns the dense torch.nn.Module."
            )
        with user_code(f"--model {spec!r}: calling it"):
            model = model()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"--model {spec!r} returned something of type {type(model).__name__}. "
            "It must return the dense torch.nn.Module."
        )
    if weights is not None:
        load_weights(model, weights)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads ``path`` (safetensors, or a torch file of tensors only) into ``model``, strictly.

    Raises:
        LoadError: the file cannot be read; a parameter is missing, unexpected, or of another shape.
    """
    found = _read_weights(path)
    expected = model.state_dict()
    if all(name.startswith("module.") for name in found) and not found.keys() & expected.keys():
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}  # of DataParallel
    _, canonical = named_tensors(model)
    # A tensor under several names is often written once, as safetensors does.
    written = {canonical[name]: tensor for name, tensor in found.items() if name in canonical}
    state = {name: written[canonical[name]] for name in expected if canonical.get(name) in written}
    state = {**state, **found}
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and isinstance(tensor, torch.Tensor) and state[name].shape != tensor.shape
    ]
    faults = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    said = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if said:
        raise LoadError(
            f"the weights in {str(path)!r} do not fit {type(model).__name__}: {'; '.join(said)}. "
            "Give the weights of exactly the model that --model builds."
        )
    kinds = {
        f"{state[name].dtype} to {tensor.dtype}".replace("torch.", "")
        for name, tensor in expected.items()
        if isinstance(tensor, torch.Tensor) and state[name].dtype != tensor.dtype
    }
    if kinds:
        warnings.warn(
            f"the weights in {str(path)!r} are converted from {', '.join(sorted(kinds))}, to match the model "
            "that --model builds.",
            DisparseWarning,
            stacklevel=2,
        )
    model.load_state_dict(state, strict=True)


def read_structure(
    model: nn.Module, example: tuple[Any, ...], tasks: Sequence[Task] | None, arguments: argparse.Namespace
) -> Structure:
    """The structure of ``model`` as ``--form``, ``--attention``, ``--outputs`` and so on ask for it."""
    return analyse(
        model,
        example,
        tasks,
        form=arguments.form,
        attention=arguments.attention,
        outputs=arguments.outputs,
        entry_points=load_entry_points(model, arguments.entry_points),
    )


def load_entry_points(model: nn.Module, given: Iterable[str]) -> EntryPoints:
    """The entry points of ``model`` that ``--entry-points`` names; arguments given as shapes are random.

    Raises:
        UsageError: an object does not exist or is not a dict, or a name is used twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        entries = _named_entries(text) if ":" in text else _method_call(model, text)
        twice = sorted(found.keys() & entries.keys())
        if twice:
            raise UsageError(f"--entry-points names {twice[0]!r} twice. Name it once.")
        found |= entries
    return found


def _method_call(model: nn.Module, text: str) -> dict[str, Any]:
    name, shapes = values.method_call(text)
    return {name: random_example(model, shapes, seed=0)}


def _named_entries(spec: str) -> dict[str, Any]:
    found = find(spec, "--entry-points")
    if callable(found):
        with user_code(f"--entry-points {spec!r}: calling it"):
            found = found()
    if not isinstance(found, Mapping):
        raise UsageError(
            f"--entry-points {spec!r} is of type {type(found).__name__}. Name a dict that maps names "
            "of methods to arguments, such as {'encode': (x,), 'fuse': ()}, or a function that returns one."
        )
    return dict(found)


def load_tasks(spec: str) -> tuple[Task, ...]:
    """The tasks at ``package.module:name``, or tasks without losses from ``name,name=key,name=0``.

    Raises:
        UsageError: the attribute does not exist, or holds no tasks.
        TaskError: a name is used twice, or an entry is not a task.
    """
    if ":" not in spec:
        return check_tasks([Task(name, output) for name, output in values.task_outputs(spec)])
    found = find(spec, "--tasks")
    if callable(found):
        with user_code(f"--tasks {spec!r}: calling it"):
            found = found()
    if isinstance(found, Task):
        found = (found,)
    if not isinstance(found, Iterable):
        raise UsageError(
            f"--tasks {spec!r} is of type {type(found).__name__}. Name a sequence of Task, or a function "
            "that returns one; or list output names, such as depth,normals."
        )
    return check_tasks(list(found))


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle, zip and the file system share no base class
        raise LoadError(
            f"{str(path)!r} cannot be read as weights ({reason(error)}). Give a .safetensors file, or "
            "a torch file that holds tensors only (torch.save(model.state_dict(), …))."
        ) from error
    for key in _CHECKPOINT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(x, torch.Tensor) for x in content.values()):
        mapping = isinstance(content, Mapping)
        held = f"the keys {_some(list(map(str, content)))}" if mapping else f"a {type(content).__name__}"
        raise LoadError(
            f"{str(path)!r} holds {held}, not a state dict of tensors. "
            "Write it with torch.save(model.state_dict(), …)."
        )
    return dict(content)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
