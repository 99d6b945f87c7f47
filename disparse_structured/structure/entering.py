"""The graphs of a model's other entry points, and the numbers that they read.

An entry point that returns tensors is exported like ``forward``. One that changes the model (``fuse``) runs
on a copy, and then ``forward`` of the copy is exported. If the copy has new parameters, its graph says
nothing about the model's own. Then ``forward`` must compute the same as before, and the integer attributes
that the entry point read are taken for sizes of the tensors of their modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from disparse_structured.data.differences import close
from disparse_structured.errors import CaptureError, OptionError
from disparse_structured.graph.capture import Capture, capture, tensor_leaves
from disparse_structured.graph.copies import copied
from disparse_structured.graph.entries import Entered, Entry, entered, integers_read
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.provenance import Attribute
from disparse_structured.structure.groups import Consumer
from disparse_structured.structure.tracing import SizeLiteral, Trace
from disparse_structured.tasks import Task

OUTPUT = "output"
"""The task of an entry point's graph: everything that it returns."""

_CLOSE = 1e-3
"""How far a changed model's output may be from the model's own."""


@dataclass(frozen=True, eq=False)
class EntryGraph:
    """An entry point with its graph.

    ``changes`` if it changes the model; ``inputs`` are then those of ``forward``, otherwise its own.
    ``capture`` is its graph, or None if ``forward`` must compute the same after it as before. ``integers``
    are the attributes that it read then: module path and name. ``consumers`` has, for each channel group,
    the places where this graph reads it.
    """

    entry: Entry
    changes: bool
    capture: Capture | None
    inputs: tuple[Any, ...]
    integers: frozenset[tuple[str, str]] = frozenset()
    consumers: tuple[tuple[Consumer, ...], ...] = ()


def entry_graph(model: nn.Module, entry: Entry, inputs: tuple[Any, ...], number: int) -> EntryGraph:
    """Read ``entry`` of ``model``; ``inputs`` are the arguments of ``forward``.

    Args:
        number: of its graph among those of the model.

    Raises:
        OptionError: the model does not run that way.
        CaptureError: its graph cannot be exported, and there is nothing else to compare with.
    """
    student = copied(model)
    arguments = entry.arguments(student, inputs)
    done, tensors = _tried(entry, student, arguments, inputs)
    everything = (Task(OUTPUT, tensor_leaves),)
    if done.changed is None:
        try:
            found = capture(model, arguments, everything, function=entry.call, number=number)
        except CaptureError as error:
            raise CaptureError(
                f"entry point {entry.name!r}: {error}\nIf it changes the model and then runs it, let it "
                "return nothing or the changed model."
            ) from error
        return EntryGraph(entry, False, found, arguments)
    own, known = named_tensors(done.changed)[0], named_tensors(model)[0]
    if all(name in known and known[name].shape == tensor.shape for name, tensor in own.items()):
        try:
            return EntryGraph(entry, True, capture(done.changed, inputs, everything, number=number), inputs)
        except CaptureError:
            pass
    before = Entered(None, copied(model)).tensors(inputs)
    if not close(tensors, before, _CLOSE):
        raise CaptureError(
            f"entry point {entry.name!r} changes what forward computes and cannot be exported, so there is "
            "nothing to compare a pruned model with. Pass a function of the model that returns tensors and "
            "that torch.export can capture, or leave it out."
        )
    watched = copied(model)
    with integers_read(watched) as integers:
        entered(entry, watched, arguments)
    return EntryGraph(entry, True, None, inputs, frozenset(integers))


def _tried(
    entry: Entry, student: nn.Module, arguments: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[Entered, list[torch.Tensor]]:
    try:
        done = entered(entry, student, arguments)
        return done, done.tensors(inputs)
    except Exception as error:  # whatever a user's method raises
        raise OptionError(
            f"entry point {entry.name!r} fails on the model itself: {type(error).__name__}: {error}. "
            "Give it the arguments that it takes."
        ) from error


def sizes_read(
    model: nn.Module, graphs: Iterable[EntryGraph], trace: Trace, canonical: Mapping[str, str]
) -> Iterator[SizeLiteral]:
    """Yield what the integers that entry points read may count.

    An integer is taken for each dimension that has its size, in the module's own tensors and those of its
    children. Dimensions that have another size in another module of the same class are left out. If several
    remain that are not removed together, their counts must stay equal.
    """
    read = sorted({each for graph in graphs for each in graph.integers})
    found: dict[tuple[str, str], set[tuple[str, int]]] = {}
    by_kind: dict[tuple[type, str], set[tuple[str, int]]] = {}
    for path, name in read:
        module = model.get_submodule(path)
        size = getattr(module, name)
        candidates = {
            (own, dim)
            for own in (*dict(module.named_parameters()), *dict(module.named_buffers()))
            for dim, axis in enumerate(trace.tensors.get(canonical[f"{path}.{own}" if path else own], ()))
            if axis.labels is not None and axis.size == size
        }
        found[path, name] = candidates
        by_kind[type(module), name] = by_kind.get((type(module), name), candidates) & candidates
    for (path, name), candidates in found.items():
        shared = by_kind[type(model.get_submodule(path)), name]
        for own, dim in sorted(shared or candidates):
            axis = trace.tensors[canonical[f"{path}.{own}" if path else own]][dim]
            yield SizeLiteral(Attribute(path, name), axis.atoms(), "an entry point", path)
