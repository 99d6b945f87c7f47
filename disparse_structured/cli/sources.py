"""What the command line names: the model, its weights, the data, the tasks, the example inputs."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from disparse_structured.cli.lookup import find, user_code
from disparse_structured.cli.usage import UsageError
from disparse_structured.data.batches import batches, model_inputs, to_device
from disparse_structured.errors import BatchError, LoadError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.tasks import Task, check_tasks

REAL_SAMPLES = 8
"""How many samples of the first batch an ONNX file is checked on."""

_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")


def load_model(spec: str, weights: str | None) -> nn.Module:
    """The module that the factory ``spec`` builds (or that it is), with the weights of the file.

    Raises:
        UsageError: there is no such factory, it fails, or what it returns is no module.
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
        load_weights(model, Path(weights))
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads ``path`` (safetensors, or a torch file of tensors only) into ``model``, strictly.

    Raises:
        LoadError: the file cannot be read; a parameter is missing, left over, or of another shape.
    """
    found = _read_weights(path)
    expected = model.state_dict()
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
        "left over": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    said = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if said:
        raise LoadError(
            f"the weights in {str(path)!r} do not fit {type(model).__name__}: {'; '.join(said)}. "
            "Give the weights of exactly the model that --model builds."
        )
    model.load_state_dict(state, strict=True)


def load_data(spec: str, limit: int | None, option: str = "--data") -> Iterable[Any]:
    """At most ``limit`` batches of the loader ``spec``, or of what it returns, anew at each iteration.

    Raises:
        UsageError: there is no such loader, it fails, or what it returns cannot be iterated.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--batches {limit}: read at least 1 batch.")
    found = find(spec, option)
    made, again = found, None
    if callable(found) and not isinstance(found, Iterable):
        with user_code(f"{option} {spec!r}: calling it"):
            made = found()
        again = found
    if isinstance(made, torch.Tensor | Mapping):
        made = [made]  # one batch
    if not isinstance(made, Iterable):
        what = "returned something" if again else "is"
        raise UsageError(
            f"{option} {spec!r} {what} of type {type(made).__name__}, which yields no batches. Name a "
            "loader, a list of batches, or a function without arguments that returns one."
        )
    if isinstance(made, DataLoader) and limit is None:
        return made  # training asks it about its samplers, generators and workers
    if not isinstance(made, Iterator):
        return Batches(lambda: made, limit, option)
    if again is not None:
        return Batches(again, limit, option)
    with user_code(f"{option} {spec!r}: reading it"):
        kept = list(itertools.islice(made, limit))
    return Batches(lambda: kept, limit, option)


class Batches:
    """The first ``limit`` batches of what ``source`` gives; can be read more than once."""

    def __init__(self, source: Callable[[], Any], limit: int | None, option: str) -> None:
        self._source = source
        self._limit = limit
        self._option = option

    def __iter__(self) -> Iterator[Any]:
        with user_code(f"{self._option}: reading a batch"):
            yield from itertools.islice(self._source(), self._limit)

    def __len__(self) -> int:
        """The number of batches; raises :class:`TypeError` where the source has none."""
        total = len(self._source())
        return total if self._limit is None else min(total, self._limit)


def load_tasks(spec: str) -> tuple[Task, ...]:
    """The tasks of ``package.module:attribute``, or label-free ones from ``name,name=key,name=0``.

    Raises:
        UsageError: there is no such attribute, or it holds no tasks.
        TaskError: a name is used twice, or something else than a task is among them.
    """
    if ":" not in spec:
        return check_tasks([_label_free(entry.strip(), spec) for entry in spec.split(",")])
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


def whole_output() -> tuple[Task, ...]:
    """One task that is everything the model returns, for looking at a model without naming tasks."""
    return (Task("output", ()),)


def random_example(model: nn.Module, shapes: Iterable[str], seed: int) -> tuple[torch.Tensor, ...]:
    """Standard normal inputs, one for each shape such as ``2x3x224x224``, of the model's device and type."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[torch.Tensor] = []
    for text in shapes:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
            raise UsageError(f"--example {text!r} is no shape. Write sizes with x between: 2x3x224x224.")
        drawn.append(torch.randn([int(size) for size in text.split("x")], generator=generator))
    return _placed(model, tuple(drawn))


def first_inputs(model: nn.Module, data: Iterable[Any]) -> tuple[Any, ...]:
    """The positional arguments of ``forward`` that the first batch holds, where the model's weights are.

    Raises:
        BatchError: there is no batch, or it does not hold the arguments.
    """
    positional, named = model_inputs(model, next(batches(data)))
    if named:
        bound = inspect.signature(model.forward).bind(*positional, **named)
        bound.apply_defaults()
        if bound.kwargs:
            raise BatchError(
                f"{type(model).__name__}.forward takes {list(bound.kwargs)} by name only, but exporting "
                "passes arguments by position. Let it take them by position too."
            )
        positional = bound.args
    return _placed(model, positional)


def _placed(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return inputs if first is None else tuple(to_device(inputs, first.device, first.dtype))


def _label_free(entry: str, spec: str) -> Task:
    name, equals, key = entry.partition("=")
    if not name or (equals and not key):
        raise UsageError(
            f"--tasks {spec!r}: {entry!r} names no task. Write depth,normals for dict keys, depth=aux.depth "
            "for a path, depth=0 for an index, or package.module:tasks for tasks with losses."
        )
    index = re.fullmatch(r"-?\d+", key)
    return Task(name, int(key) if index else key or name)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise LoadError(f"there is no weights file {str(path)!r}. Give a .safetensors or a torch file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle, zip and the file system have no common base
        first = (str(error).strip().splitlines() or [""])[0]
        raise LoadError(
            f"{str(path)!r} cannot be read as weights ({type(error).__name__}: {first}). Give a .safetensors "
            "file, or a torch file that holds tensors only (torch.save(model.state_dict(), …))."
        ) from error
    for key in _CHECKPOINT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(x, torch.Tensor) for x in content.values()):
        held = f"keys {_some(list(map(str, content)))}" if isinstance(content, Mapping) else "no mapping"
        raise LoadError(
            f"{str(path)!r} holds {held}, not a state dict of tensors. "
            "Write it with torch.save(model.state_dict(), …)."
        )
    return dict(content)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
