"""A network that is an exported graph: its tensors under their own names, its sizes rewritten."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batched_leaves
from disparse_structured.data.call import split
from disparse_structured.graph.instrument import instrumented
from disparse_structured.graph.named_tensors import named_tensors, persistent_tensors
from disparse_structured.graph.operators import schema_arguments
from disparse_structured.structure import Structure
from disparse_structured.structure.groups import positions_left
from disparse_structured.structure.resizing import Resize
from disparse_structured.structure.weight_scales import WeightScale
from disparse_structured.tasks import Task

_CONSTANTS = "_constants"


class PrunedGraph(nn.Module):
    """The exported graph of ``model`` with only the units of ``keep`` (bool ``[units]``); nothing is checked.

    It owns copies of the parameters and buffers, under their names in ``model``; what was tied or frozen
    (``requires_grad``) remains so. It computes as ``model`` does in eval mode, whichever mode it is in, and
    returns ``{task: tensor}``, or the tuple of a task's tensors. Its inputs are shaped like the structure's
    example inputs, because sizes are literals of the graph; with ``any_batch``, the first dimension of
    batched inputs is free.
    """

    def __init__(
        self, model: nn.Module, structure: Structure, keep: torch.Tensor, *, any_batch: bool = False
    ) -> None:
        super().__init__()
        capture = structure.capture
        left = positions_left(structure.groups, capture.shapes(), keep)
        _own(self, model, left, structure.weight_scales)
        constants = nn.Module()
        self._objects: dict[str, Any] = {}
        for name, value in capture.constants.items():
            if isinstance(value, torch.Tensor):
                kept = _sliced(value, left.get(capture.attributes.get(name, ""), {}))
                constants.register_buffer(name, kept, persistent=False)
            else:
                self._objects[name] = value
        self.add_module(_CONSTANTS, constants)
        self._sources = tuple(_sources(structure))
        self._tasks = tuple(zip(capture.tasks, capture.widths, strict=True))
        self._examples, self._any_batch = structure.resizing.batch, any_batch
        self._example = tuple(_shape(leaf) for leaf in pytree.tree_leaves(structure.example_inputs))
        self._arguments = _argument_names(model, structure.example_inputs)
        self._batched = tuple(batched_leaves(structure.example_inputs))
        self._program = _resized(structure, keep, any_batch)

    @property
    def examples(self) -> int:
        """The number of examples in the batch that the graph was exported with."""
        return self._examples

    @property
    def any_batch(self) -> bool:
        """Whether it takes any other number of examples as well."""
        return self._any_batch

    def forward(self, *inputs: Any, **named: Any) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """Compute the tasks' outputs; raise ``ValueError`` for inputs that the graph was not made for."""
        leaves = self._leaves(inputs, named)
        wrong = self._wrong_in(leaves)
        if wrong is not None:
            # No DisparseError: callers that try other sizes (the ONNX export) expect a module's error.
            raise ValueError(wrong)
        given = iter(leaves)
        arguments = [self._argument(name) if name else next(given) for name in self._sources]
        returned = iter(self._program(*arguments))
        outputs = {task: tuple(next(returned) for _ in range(width)) for task, width in self._tasks}
        return {task: found[0] if len(found) == 1 else found for task, found in outputs.items()}

    def _leaves(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
        """The inputs in the order of the export, whatever the order of those passed by name."""
        rest = self._arguments[len(inputs) :]
        if not named.keys() <= set(rest):
            raise ValueError(f"the graph takes {list(rest)} by name, found {list(named)}.")
        return pytree.tree_leaves((inputs, [named[name] for name in rest if name in named]))

    def takes(self, inputs: tuple[Any, ...]) -> bool:
        """Check whether the graph was made for inputs of these shapes."""
        return self._wrong_in(self._leaves(*split(inputs))) is None

    def _argument(self, name: str) -> Any:
        return self._objects[name] if name in self._objects else operator.attrgetter(name)(self)

    def _wrong_in(self, leaves: Sequence[Any]) -> str | None:
        if len(leaves) != len(self._example):
            return f"the graph takes {len(self._example)} inputs, found {len(leaves)}."
        for position, (leaf, expected) in enumerate(zip(leaves, self._example, strict=True)):
            found = _shape(leaf)
            free = self._any_batch and isinstance(leaf, torch.Tensor) and self._batched[position]
            if found[1:] != expected[1:] if free else found != expected:
                wanted = f"(any, {', '.join(map(str, expected[1:]))})" if free else expected
                return (
                    f"input {position} is {found}, but the graph was made for {wanted}: its sizes are fixed. "
                    "Analyze the model with example inputs of the new shape and apply the plan again, or "
                    "pass them as example_inputs= to load()."
                )
        return None


def _argument_names(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """The parameter of ``forward`` that each of ``inputs`` is for; "" if it cannot be passed by name."""
    positional, named = split(inputs)
    names = [
        each.name if each.kind is each.POSITIONAL_OR_KEYWORD else ""
        for each in inspect.signature(model.forward).parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ][: len(positional)]
    return (*names, *[""] * (len(positional) - len(names)), *named)


def _shape(leaf: Any) -> Any:
    """The part of an input that the graph fixes: a tensor's shape, or any other value."""
    return tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf


def _sources(structure: Structure) -> list[str]:
    """For each placeholder the name of the tensor or constant it stands for; empty for the user's inputs."""
    capture = structure.capture
    names = []
    for node in capture.graph.find_nodes(op="placeholder"):
        name = capture.tensors.get(node.name, "")
        if node.name in capture.constants:
            held = isinstance(capture.constants[node.name], torch.Tensor)
            name = f"{_CONSTANTS}.{node.name}" if held else node.name
        names.append(name)
    return names


# Tensors.


def _own(
    owner: nn.Module,
    model: nn.Module,
    left: dict[str, dict[int, np.ndarray]],
    weight_scales: Sequence[WeightScale],
) -> None:
    """Gives ``owner`` what is left of the tensors of ``model``, in plain modules of the same names."""
    tensors, canonical = named_tensors(model)
    made = {name: _sliced(tensor, left.get(name, {})) for name, tensor in tensors.items()}
    for each in weight_scales:
        if any(dim != each.dim for dim in left.get(each.weight, {})):
            whole = {name: tensor.detach() for name, tensor in tensors.items()}
            scale = each.measure(whole)
            made[each.rescaled].data = _sliced(whole[each.rescaled], left.get(each.rescaled, {}))
            each.restore(made, scale)
    persistent = persistent_tensors(model)
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            tensor = made[canonical[prefix + name]]
            assert isinstance(tensor, nn.Parameter)
            _holder(owner, path).register_parameter(name, tensor)
        for name, _ in module.named_buffers(recurse=False, remove_duplicate=False):
            owned = canonical[prefix + name]
            _holder(owner, path).register_buffer(name, made[owned], persistent=owned in persistent)


def _holder(owner: nn.Module, path: str) -> nn.Module:
    """The module at ``path`` of ``owner``, created if missing."""
    for name in path.split(".") if path else ():
        children = dict(owner.named_children())
        if name not in children:
            owner.add_module(name, nn.Module())
        owner = owner.get_submodule(name)
    return owner


def _sliced(tensor: torch.Tensor, left: dict[int, np.ndarray]) -> torch.Tensor:
    """A copy of ``tensor`` with only the positions of ``left``; a parameter if ``tensor`` is one."""
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    result = tensor.detach()
    for dim, positions in left.items():
        result = result.index_select(dim, torch.from_numpy(positions).to(tensor.device))
    dense = channels_last and not tensor.is_contiguous()
    result = result.clone(memory_format=torch.channels_last if dense else torch.preserve_format)
    return nn.Parameter(result, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result


# The program.


def _resized(structure: Structure, keep: torch.Tensor, any_batch: bool) -> fx.GraphModule:
    """The graph of the tasks' outputs with the sizes that ``keep`` leaves, and the dense attention scales."""
    program = instrumented(structure.capture, {}, {})
    nodes = {node.name: node for node in program.graph.nodes}
    batched = any_batch and any(place.batched for place in structure.resizing.places)
    batch = _BatchSize(structure, program.graph, nodes) if batched else None
    for place, size in structure.resizing.sizes(keep).items():
        if place.node in nodes:
            follows = place.batched and size % structure.resizing.batch == 0
            _write(nodes[place.node], place, batch.times(size) if batch and follows else size)
    for scale in structure.scales:
        if scale.node in nodes:
            nodes[scale.node].update_kwarg("scale", scale.size**-0.5)
    program.graph.lint()
    program.recompile()
    return program


class _BatchSize:
    """The number of examples, read from the first batched input when the graph runs."""

    def __init__(self, structure: Structure, graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
        self._graph = graph
        self._batch = structure.resizing.batch
        self._products: dict[int, fx.Node] = {}
        placeholders = graph.find_nodes(op="placeholder")
        values: dict[str, Any] = {
            name: node.meta.get("val") for name, node in structure.capture.nodes.items()
        }
        source = next(
            nodes[name]
            for name in structure.capture.inputs
            if isinstance(values[name], torch.Tensor) and values[name].ndim
        )
        self._anchor = placeholders[-1]
        self._size = self._insert(graph.call_method, "size", (source, 0))

    def times(self, size: int) -> fx.Node:
        """``size``, a multiple of the exported batch size, for the current batch."""
        factor = size // self._batch
        if factor == 1:
            return self._size
        if factor not in self._products:
            self._products[factor] = self._insert(
                self._graph.call_function, operator.mul, (self._size, factor)
            )
        return self._products[factor]

    def _insert(self, create: Any, target: Any, args: tuple[Any, ...]) -> fx.Node:
        with self._graph.inserting_after(self._anchor):
            node: fx.Node = create(target, args)
        self._anchor = node
        return node


def _write(node: fx.Node, place: Resize, size: int | fx.Node) -> None:
    """Puts ``size`` at ``place`` of ``node``."""
    position = [argument.name for argument in schema_arguments(node)].index(place.argument)
    positional = position < len(node.args)
    given: Any = node.args[position] if positional else node.kwargs[place.argument]
    written: Any = size
    if place.item is not None:
        written = [size if i == place.item else each for i, each in enumerate(given)]
    if positional:
        node.update_arg(position, written)
    else:
        node.update_kwarg(place.argument, written)


def fixed_batch(model: nn.Module) -> int | None:
    """The only number of examples that ``model`` takes; None if it is a module, or a graph that takes any."""
    return model.examples if isinstance(model, PrunedGraph) and not model.any_batch else None


def tasks_of(model: nn.Module, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """``tasks`` as ``model`` returns them: a pruned exported graph returns ``{task: tensor}``."""
    if not isinstance(model, PrunedGraph):
        return tuple(tasks)
    return tuple(dataclasses.replace(task, output=task.name) for task in tasks)
