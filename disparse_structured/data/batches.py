"""From what a loader yields to what a model's ``forward`` takes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from disparse_structured.checks import check_callable, shown
from disparse_structured.data.call import Batched, Keywords, bound, call, joined, split
from disparse_structured.data.modes import ordinary
from disparse_structured.data.precision import in_precision
from disparse_structured.errors import BatchError, DisparseError

ToInputs = Callable[[Any], "tuple[Any, ...] | Mapping[str, Any]"]
"""A user's function from a batch to the arguments of ``forward``: a tuple, or a dict by name."""

UNSIZED = 4096
"""The most examples that are read from data without a length, unless ``samples`` says how many."""

SCORED_TOGETHER = 32
"""Examples of a tensor that are scored as one batch."""

INPUT_KEYS = ("image", "images", "input", "inputs", "pixel_values", "x")
"""Dict keys that mean "the model's input" even where ``forward`` calls it something else."""


def model_inputs(model: nn.Module, batch: Any, to_inputs: ToInputs | None = None) -> tuple[Any, ...]:
    """Return the arguments that ``batch`` holds for ``model.forward``; ``to_inputs`` replaces these rules.

    - A tensor is the only argument.
    - In a tuple or list, the first element is the input (the rest is ground truth). If it is a tuple,
      its elements are the arguments; if it is a dict, the next rule applies to it.
    - In a dict, the entries named like parameters of ``forward`` are passed by name. If ``forward`` has
      ``**kwargs``, all entries are. If ``forward``'s first parameter is not among the keys, and exactly
      one key of :data:`INPUT_KEYS` names no parameter, that entry is the first argument: ``{"image": ...,
      "depth": ...}`` fits ``forward(x)``.

    Raises :class:`BatchError` for any other ``batch``, and if a required parameter gets no value.
    """
    if to_inputs is not None:
        return _chosen_inputs(to_inputs, batch)
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, tuple | list):
        if not batch:
            raise BatchError(
                f"the batch is an empty {type(batch).__name__}. Its first element must be the input."
            )
        first = batch[0]
        if isinstance(first, tuple):
            return tuple(first)
        return _from_mapping(model, first) if isinstance(first, Mapping) else (first,)
    if isinstance(batch, Mapping):
        return _from_mapping(model, batch)
    if isinstance(batch, np.ndarray):
        raise BatchError("the data is an array; expected tensors. Pass torch.from_numpy(array).")
    raise BatchError(
        f"the batch is a {type(batch).__name__}; expected a tensor, a tuple or list that starts with the "
        "input, or a dict. Pass to_inputs=, a function from a batch to the arguments of forward."
    )


def _chosen_inputs(to_inputs: ToInputs, batch: Any) -> tuple[Any, ...]:
    remedy = "Pass a function from a batch to the arguments of forward."
    fits = isinstance(to_inputs, type) and issubclass(to_inputs, tuple | Mapping)
    check_callable("to_inputs", to_inputs, 1, remedy, classes=fits)
    given = to_inputs(batch)
    if isinstance(given, Mapping):
        return joined((), given)
    if isinstance(given, tuple):
        return given
    raise BatchError(
        f"to_inputs= returned a {type(given).__name__}; expected the tuple of forward's arguments, or a dict "
        "of them by name. For a single tensor, return (tensor,)."
    )


def as_arguments(model: nn.Module, inputs: tuple[Any, ...] | Tensor | Mapping[str, Any]) -> tuple[Any, ...]:
    """Return example inputs as the tuple of ``forward``'s arguments.

    A single tensor is the only argument. A dict holds the arguments by name. If ``forward`` has none of the
    names, the dict itself is the only argument.

    Raises:
        BatchError: ``forward`` does not take them.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if isinstance(inputs, Mapping):
        parameters = inspect.signature(model.forward).parameters.values()
        known = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}
        if known & inputs.keys() or any(p.kind is p.VAR_KEYWORD for p in parameters):
            given = joined((), inputs)
    try:
        found: tuple[Any, ...] = pytree.tree_map(ordinary, bound(model.forward, given))
    except TypeError as error:
        raise BatchError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}. Pass a tensor, the "
            "tuple of its arguments, or a dict of them by name."
        ) from None
    return found


def batch_size(inputs: tuple[Any, ...]) -> int:
    """The number of examples: the size of the first batched tensor's first dimension; 1 if there is none."""
    leaves = pytree.tree_leaves(inputs)
    if isinstance(inputs, Batched):
        leaves = [leaves[number] for number in inputs.where]
    return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)


def check_examples(inputs: tuple[Any, ...]) -> None:
    """Raise :class:`BatchError` if ``inputs`` contain no examples."""
    if not batch_size(inputs):
        raise BatchError(
            "the inputs contain no examples: the first dimension of a tensor is 0. Pass at least one."
        )


def batched_leaves(inputs: tuple[Any, ...]) -> list[bool]:
    """For each leaf of ``inputs``, whether its first dimension is the batch.

    In :class:`~disparse_structured.data.call.Batched` inputs these are the marked ones, otherwise all whose
    first dimension is :func:`batch_size`.
    """
    size = batch_size(inputs)
    return [
        isinstance(leaf, Tensor)
        and leaf.ndim > 0
        and leaf.shape[0] == size
        and (not isinstance(inputs, Batched) or number in inputs.where)
        for number, leaf in enumerate(pytree.tree_leaves(inputs))
    ]


def map_batched(function: Callable[[Tensor], Tensor], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """``inputs`` with ``function`` applied to the tensors that have a batch dimension."""
    batched = iter(batched_leaves(inputs))
    found: tuple[Any, ...] = pytree.tree_map(lambda leaf: function(leaf) if next(batched) else leaf, inputs)
    return found


def take(inputs: tuple[Any, ...], which: slice) -> tuple[Any, ...]:
    """Some examples of a batch: tensors that have a batch dimension are cut to ``which``."""
    return map_batched(lambda leaf: leaf[which], inputs)


def filled(inputs: tuple[Any, ...], size: int) -> list[tuple[Any, ...]]:
    """The examples of ``inputs`` in batches of exactly ``size``; the first ones fill up the last batch.

    >>> [batch[0].tolist() for batch in filled((torch.arange(3),), 2)]
    [[0, 1], [2, 0]]
    """
    count = batch_size(inputs)
    rows = torch.arange(-(-count // size) * size) % count
    return [_rows(inputs, part) for part in rows.split(size)]


def _rows(inputs: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    return map_batched(lambda leaf: leaf[rows.to(leaf.device)], inputs)


def call_model(model: nn.Module, batch: Any, to_inputs: ToInputs | None = None) -> Any:
    """Return ``model``'s output for ``batch``, by the rules of :func:`model_inputs`.

    Raises :class:`BatchError` when the model refuses the batch, with the model's own reason.
    """
    inputs = model_inputs(model, batch, to_inputs)
    try:
        return call(model, inputs)
    except (DisparseError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        positional, named = split(inputs)
        given = ", ".join(
            [_shape(value) for value in positional] + [f"{k}={_shape(v)}" for k, v in named.items()]
        )
        raise BatchError(
            f"{type(model).__name__} refused a batch, called with ({given}): "
            f"{type(error).__name__}: {error}. {_remedy(inputs)}"
        ) from error


def _remedy(inputs: tuple[Any, ...]) -> str:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if any(tensor.dtype is torch.uint8 for tensor in tensors):
        return (
            "Integers from 0 to 255 are images as they are stored. Pass what forward takes, such as "
            "floating-point numbers, resized and normalized."
        )
    remedy = (
        "Change what the loader yields, or pass to_inputs=, a function from a batch to forward's arguments."
    )
    if len(tensors) == 1 and tensors[0].ndim == 3:
        remedy += " The first dimension counts examples: put single images together with torch.stack."
    return remedy


def tensor_batches(data: Tensor, limit: int | None = None) -> tuple[Tensor, ...]:
    """The first ``limit`` examples of a tensor ``[N, ...]`` as batches.

    Raises:
        BatchError: there are none, or the tensor is sparse or nested.
    """
    if data.is_nested or data.layout is not torch.strided:
        raise BatchError("the data is a sparse or nested tensor. Pass one that is dense: [N, ...].")
    if not data.ndim or not len(data):
        raise BatchError(
            f"the data is a tensor of shape {list(data.shape)}, which contains no examples. "
            "Pass [N, ...], a few dozen examples."
        )
    return tuple(torch.split(data[:limit], SCORED_TOGETHER))


def readable(data: Any, samples: int | None = None) -> Iterable[Any]:
    """``data`` as batches that can be read again and again, until there are ``samples`` examples.

    Raises:
        BatchError: it is neither a tensor with examples, nor one batch, nor something that yields batches.
            While it is read: it has no length, nor ``samples``, and more than :data:`UNSIZED` examples.
    """
    if isinstance(data, Tensor):
        return tensor_batches(data, samples)
    if isinstance(data, Mapping | tuple):
        return [data]
    if not isinstance(data, Iterable):
        raise _no_batches(data)
    if isinstance(data, Iterator):
        data = _Kept(data)
    if samples is not None:
        return _First(data, samples)
    return data if _sized(data) else _Unsized(data)


def count(data: Iterable[Any]) -> int | None:
    """About how many examples ``data`` holds; None if it would have to be read."""
    if isinstance(data, list | tuple):
        return sum(batch_size((batch,)) for batch in data)
    if isinstance(data, DataLoader) and data.batch_size is not None and _sized(data):
        return len(data) * data.batch_size
    return None


def _sized(data: Iterable[Any]) -> bool:
    try:
        len(data)  # type: ignore[arg-type]  # TypeError is the answer of what has no length
    except TypeError:
        return False
    return True


class _Kept:
    """The batches of an iterator, which is read only as far as needed; what was read is kept."""

    def __init__(self, data: Iterator[Any]) -> None:
        self._left = data
        self._read: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.count():
            if number == len(self._read):
                try:
                    self._read.append(next(self._left))
                except StopIteration:
                    return
            yield self._read[number]


@dataclass(frozen=True)
class _Unsized:
    """Batches of unknown number: more than :data:`UNSIZED` examples are refused."""

    data: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        read = 0
        for batch in self.data:
            if read >= UNSIZED:
                raise BatchError(
                    f"the data has no length, and after {read} examples it has not ended. Pass samples=, the "
                    "number of examples to read, or a loader with a length."
                )
            yield batch
            read += batch_size((batch,))


@dataclass(frozen=True)
class _First:
    """The first batches of ``data``, until there are ``samples`` examples."""

    data: Iterable[Any]
    samples: int

    def __iter__(self) -> Iterator[Any]:
        return _first(iter(self.data), self.samples)


def _first(data: Iterator[Any], samples: int) -> Iterator[Any]:
    read = 0
    for batch in data:
        yield batch
        read += batch_size((batch,))
        if read >= samples:
            return


def batches(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of ``loader``; raises :class:`BatchError` if there is none."""
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes):
        raise _no_batches(loader)
    empty = True
    for batch in loader:
        empty = False
        yield batch
    if empty:
        raise BatchError(
            "the loader yields no batch. Pass one that yields at least one; "
            "an iterator or generator that was read before is exhausted: pass a DataLoader or a list. "
            "drop_last=True drops all samples if they do not fill a batch."
        )


def _no_batches(data: Any) -> BatchError:
    loader = isinstance(data, Dataset)
    remedy = f" Pass a loader: torch.utils.data.DataLoader(dataset, {SCORED_TOGETHER})." if loader else ""
    return BatchError(
        f"data must be a tensor [N, ...], a loader or a list of batches, got {shown(data)}.{remedy}"
    )


def to_device(batch: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """``batch`` with every tensor on ``device``; tuples, lists and dicts are rebuilt, the rest is unchanged.

    With ``dtype``, real tensors also take that type, and complex ones its complex counterpart; integer and
    bool ones keep theirs.
    """
    if isinstance(batch, Tensor):
        if batch.is_meta and torch.device(device).type != "meta":
            raise BatchError(
                "a batch holds a tensor on the meta device, which has no values. Pass real ones."
            )
        there = batch.to(device)
        return ordinary(there if dtype is None else in_precision(there, dtype))
    if isinstance(batch, Mapping):
        placed = {key: to_device(value, device, dtype) for key, value in batch.items()}
        return Keywords(placed) if isinstance(batch, Keywords) else placed
    if isinstance(batch, tuple | list):
        moved = [to_device(value, device, dtype) for value in batch]
        if isinstance(batch, Batched):
            return Batched(moved, batch.where)
        if isinstance(batch, list):
            return moved
        make = getattr(type(batch), "_make", tuple)  # named tuples take their fields one by one
        return make(moved)
    return batch


def _from_mapping(model: nn.Module, batch: Mapping[Any, Any]) -> tuple[Any, ...]:
    kind = inspect.Parameter
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [p.name for p in parameters if p.kind in (kind.POSITIONAL_OR_KEYWORD, kind.KEYWORD_ONLY)]
    named = {name: batch[name] for name in names if name in batch}
    positional: tuple[Any, ...] = ()
    inputs = [key for key in INPUT_KEYS if key in batch and key not in names]
    takes_first = bool(parameters) and parameters[0].kind in (
        kind.POSITIONAL_ONLY,
        kind.POSITIONAL_OR_KEYWORD,
        kind.VAR_POSITIONAL,
    )
    if len(inputs) == 1 and takes_first and parameters[0].name not in named:
        positional = (batch[inputs[0]],)
    covered = {*named, *(p.name for p in parameters[: len(positional)])}
    variadic = (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    missing = [name for name in required if name not in covered]
    if any(p.kind is kind.VAR_KEYWORD for p in parameters):
        used = {*named, *(inputs if positional else ())}
        named |= {key: value for key, value in batch.items() if key not in used and isinstance(key, str)}
    if missing or not (named or positional):
        raise BatchError(
            f"the batch is a dict with keys {list(batch)}, but {type(model).__name__}.forward takes "
            f"{[p.name for p in parameters]} and gets no {missing[0] if missing else 'argument'!r}. "
            f"Name the entries like forward's parameters, give exactly one of the keys {list(INPUT_KEYS)}, "
            "or pass to_inputs=, a function from a batch to the arguments of forward."
        )
    return joined(positional, named)


def as_they_are(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """``to_inputs=`` for batches that are the arguments of ``forward``."""
    return batch


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
