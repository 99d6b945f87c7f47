"""Exports a module as a graph that returns the tasks' outputs."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.fx.config
from torch import fx, nn
from torch._ops import HigherOrderOperator
from torch.export.graph_signature import InputKind
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.utils import _pytree as pytree

from disparse_structured.data.call import split
from disparse_structured.data.modes import eval_mode, train_mode, without_fast_path
from disparse_structured.data.precision import first_inexact, in_precision
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import CaptureError, TaskError
from disparse_structured.graph.collection import without_collection
from disparse_structured.graph.effects import Effects
from disparse_structured.graph.named_tensors import device_of, named_tensors
from disparse_structured.graph.outputs import output_of
from disparse_structured.graph.packed_attention import following_weights
from disparse_structured.graph.provenance import Annotator, Real, traced_attributes
from disparse_structured.graph.regions import inline_regions
from disparse_structured.graph.side_effects import one_thread, undone
from disparse_structured.graph.supported import check_supported
from disparse_structured.tasks import Task

_PREFIX = "model"

_NUMBERS = 10**9
"""Added to the annotations of each further graph of a model, so that they differ from those of the others."""


@dataclass(frozen=True, eq=False)
class Capture:
    """An exported graph whose parameters and buffers are inputs.

    ``tensors`` maps a placeholder to the canonical name of its parameter or buffer, and ``constants`` maps it
    to a constant tensor. ``attributes`` has the dotted names of constants that modules hold as plain
    attributes. ``inputs`` lists the placeholders of the user's inputs. The graph returns the tasks' tensors
    in order (``widths[k]`` for task ``k``), then everything else the model returns (``returned`` tensors so
    far), then the output of each layer, so that dead branches stay visible. ``results`` holds, by requested
    method, the annotations of the tensors that it returned (None for a tensor that the graph does not
    compute). ``reals`` are the integers that ``forward`` computed floats from.

    The graph is read-only. Code that needs a different one copies it.
    """

    module: fx.GraphModule
    tensors: Mapping[str, str]
    constants: Mapping[str, Any]
    attributes: Mapping[str, str]
    inputs: tuple[str, ...]
    tasks: tuple[str, ...]
    widths: tuple[int, ...]
    returned: int
    results: Mapping[str, tuple[int | None, ...]]
    reals: tuple[Real, ...]

    @property
    def graph(self) -> fx.Graph:
        """The exported graph."""
        return self.module.graph

    @functools.cached_property
    def nodes(self) -> Mapping[str, fx.Node]:
        """The nodes by name, in the graph's order."""
        return {node.name: node for node in self.graph.nodes}

    @functools.cached_property
    def effects(self) -> Effects:
        """The aliases and in-place writes of the graph."""
        return Effects.of(self.graph)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own nodes, so its cached properties must be computed from those.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def outputs(self) -> tuple[Any, ...]:
        """The nodes (or constants) that the model returns."""
        results: Any = self.graph.output_node().args[0]
        return tuple(results)[: self.returned]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes at export time, by name, of everything in ``tensors`` and ``attributes``."""
        names = {**self.tensors, **self.attributes}
        placeholders = self.graph.find_nodes(op="placeholder")
        return {
            names[node.name]: tuple(node.meta["val"].shape) for node in placeholders if node.name in names
        }

    def task_outputs(self, flat: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
        """Split ``flat``, which the graph returned, by task."""
        outputs, start = {}, 0
        for task, width in zip(self.tasks, self.widths, strict=True):
            outputs[task] = tuple(flat[start : start + width])
            start += width
        return outputs

    def run(
        self,
        state: Mapping[str, torch.Tensor],
        inputs: tuple[Any, ...],
        module: Callable[..., Any] | None = None,
    ) -> dict[str, tuple[torch.Tensor, ...]]:
        """Run the graph (or ``module``, made from it) on the tensors of ``state``; return outputs by task."""
        given = self.given(state, inputs)
        arguments = [
            given[node] if node in given else state[self.tensors[node.name]]
            for node in self.graph.find_nodes(op="placeholder")
        ]
        return self.task_outputs((module or self.module)(*arguments))

    def given(self, state: Mapping[str, torch.Tensor], inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
        """Copy what the graph reads besides ``state``: the user's inputs and the constants.

        Constants move to the device of ``state``; real and complex ones take its precision.
        """
        leaves = iter(pytree.tree_leaves(inputs))
        first = first_inexact(state.values())
        return {
            node: _like(self.constants[node.name], first)
            if node.name in self.constants
            else clone_if_tensor(next(leaves))
            for node in self.graph.find_nodes(op="placeholder")
            if node.name not in self.tensors
        }


def capture(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    tasks: Sequence[Task],
    methods: Iterable[str] = (),
    *,
    training: bool = False,
    function: Callable[..., Any] | None = None,
    number: int = 0,
    reproduce: bool = False,
) -> Capture:
    """Export ``model`` in eval or train mode; raise :class:`CaptureError` with torch's reason if that fails.

    What ``methods`` (dotted, from the model: ``"stem.forward"``) return is recorded. The model's mode and
    attributes and the random state are restored. Some torch layers compute differently without gradients, so
    gradients are enabled during export: the graph does not depend on the caller's setting.

    Args:
        function: ``function(model, *example_inputs)`` runs instead of the model itself.
        number: of this graph among those of one model; its annotations differ from those of the others.
        reproduce: after a failure, let the error say whether ``torch.export`` fails on the model itself too,
            or raise :class:`BatchError` if the model refuses these inputs.
    """
    check_supported(model)
    try:
        return _captured(model, example_inputs, tasks, methods, training, function or _call_itself, number)
    except _ExportError as error:
        if reproduce:
            output_of(model, example_inputs)  # where the model refuses them itself, its own reason says more
        remark = _alone(model, example_inputs) if reproduce else ""
        raise CaptureError(f"{error}{remark}") from error.__cause__


class _ExportError(Exception):
    """``torch.export`` failed, for the reason in the message."""


def _captured(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    tasks: Sequence[Task],
    methods: Iterable[str],
    training: bool,
    function: Callable[..., Any],
    number: int,
) -> Capture:
    annotator = Annotator(number * _NUMBERS)
    wrapper = _TaskOutputs(model, tasks, function, annotator)
    with (
        one_thread(),
        undone(model),
        train_mode(model) if training else eval_mode(model),
        _quiet(),
        _no_stack_traces(),
        _use_lazy_graph_module(True),  # the exporter's passes each write Python code, which nothing runs
        without_collection(),
        torch.enable_grad(),
        without_fast_path(),
        Isolation(0, device_of(model)),
        following_weights(model),
        traced_attributes(model, annotator.reals),
        _recorded(model, methods, annotator.number) as results,
    ):
        exported = _exported(wrapper, example_inputs, type(model).__name__)
    _, canonical = named_tensors(model)
    tensors, constants, attributes, inputs = {}, {}, {}, []
    for spec in exported.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensors[spec.arg.name] = canonical[spec.target.removeprefix(f"{_PREFIX}.")]
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(spec.arg.name)
        else:
            constants[spec.arg.name] = constant = exported.constants.get(spec.target)
            path = str(spec.target).removeprefix(f"{_PREFIX}.")
            if isinstance(constant, torch.Tensor) and _attribute(model, path) is constant:
                attributes[spec.arg.name] = path
    inline_regions(exported.graph_module)
    _drop_assertions(exported.graph_module)
    _check_branches(exported.graph_module.graph, type(model).__name__)
    _name_sliced_layers(exported.graph_module.graph, model)
    captured = Capture(
        module=exported.graph_module,
        tensors=tensors,
        constants=constants,
        attributes=attributes,
        inputs=tuple(inputs),
        tasks=tuple(task.name for task in tasks),
        widths=wrapper.layout.widths,
        returned=wrapper.layout.returned,
        results=results,
        reals=tuple(dict.fromkeys(annotator.reals)),
    )
    if not training:
        _check_repeatable(captured, type(model).__name__)
    return captured


def _exported(wrapper: nn.Module, example_inputs: tuple[Any, ...], name: str) -> torch.export.ExportedProgram:
    try:
        positional, named = split(example_inputs)
        return torch.export.export(wrapper, positional, named, strict=False)
    except TaskError:
        raise
    except Exception as error:
        task_error = _task_error(error)
        if task_error is not None:
            raise task_error from None
        raise _ExportError(
            f"torch.export could not capture {name}: {_reason(error)}\n"
            "The forward pass must be one graph: no branches on tensor values, no Python side effects."
        ) from error


def _alone(model: nn.Module, example_inputs: tuple[Any, ...]) -> str:
    """Whether ``torch.export`` fails on ``model`` without what :func:`capture` adds, as a sentence."""
    positional, named = split(example_inputs)
    others = [each.name for each in threading.enumerate() if _may_run_modules(each)]
    running = f"other threads run: {', '.join(others)}"
    command = " torch.export.export(model.eval(), example_inputs, strict=False)"
    try:
        with one_thread(), undone(model), eval_mode(model), _quiet(), Isolation(0, device_of(model)):
            torch.export.export(model, positional, named, strict=False)
    except Exception:  # whatever forward raises
        doubt = f", unless another thread ran a PyTorch module meanwhile ({running})"
        return f"{command} reproduces this{doubt if others else ''}."
    retry = f" If another thread ran a PyTorch module meanwhile, try again without it ({running})."
    return f"{command} succeeds.{retry if others else ''} If it fails again, please report this model."


_WAITING = frozenset({"tqdm", "IPython", "ipykernel", "zmq", "tornado", "debugpy", "pydevd"})
"""Packages whose threads run no PyTorch modules."""


def _may_run_modules(thread: threading.Thread) -> bool:
    packages = set[str]()
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        packages.add(str(frame.f_globals.get("__name__")).partition(".")[0])
        frame = frame.f_back
    return thread is not threading.current_thread() and not packages & _WAITING


def _attribute(model: nn.Module, path: str) -> Any:
    """The plain attribute that a module holds under the dotted name ``path``; None if there is none."""
    owner, _, name = path.rpartition(".")
    try:
        return vars(model.get_submodule(owner)).get(name)
    except AttributeError:
        return None


def _drop_assertions(module: fx.GraphModule) -> None:
    """Removes what the exporter assumed of sizes that depend on the data: no operator needs it."""
    assertions = module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_scalar.default)
    for node in assertions:
        module.graph.erase_node(node)
    if assertions:
        module.recompile()


_BRANCHES = frozenset({"cond", "while_loop", "scan", "associative_scan", "map_impl"})
"""Operators that run graphs of their own, which are neither followed nor differentiated here."""


def _check_branches(graph: fx.Graph, name: str) -> None:
    for node in graph.nodes:
        if isinstance(node.target, HigherOrderOperator) and node.target.name() in _BRANCHES:
            raise CaptureError(
                f"{name} calls torch's {node.target.name()}, whose branches or steps cannot be pruned. Write "
                "them without it: torch.where chooses between two results, and a Python loop repeats."
            )


_SLICED = re.compile(r"(?P<parent>.*?)\.?slice\((?P<bounds>[^)]*)\)\.(?P<number>\d+)")


def _name_sliced_layers(graph: fx.Graph, model: nn.Module) -> None:
    """Gives layers that ``forward`` reaches through a slice of a ``Sequential`` their own names."""

    def own(path: str) -> str:
        while (found := _SLICED.match(path)) is not None:
            parent = found["parent"]
            layers: Any = model.get_submodule(parent.removeprefix(_PREFIX).removeprefix("."))
            bounds = [None if each.strip() == "None" else int(each) for each in found["bounds"].split(",")]
            number = range(len(layers))[slice(*bounds)][int(found["number"])]
            path = f"{parent}.{number}{path[found.end() :]}"
        return path

    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if any("slice(" in path for path, _ in stack.values()):
            node.meta["nn_module_stack"] = {key: (own(path), kind) for key, (path, kind) in stack.items()}


def _check_repeatable(captured: Capture, name: str) -> None:
    written = captured.effects.written & captured.tensors.keys()
    changed = sorted(captured.tensors[node] for node in written)
    if changed:
        raise CaptureError(
            f"{name} changes its own {', '.join(map(repr, changed[:3]))} in eval mode, so "
            "two forward passes differ. Make such updates in train mode only."
        )


@dataclass
class _Layout:
    """Filled during export; a separate object, because torch.export restores a module's attributes."""

    widths: tuple[int, ...] = ()
    returned: int = 0


class _TaskOutputs(nn.Module):
    """Returns the tasks' tensors, everything else the model returns, and the output of every layer."""

    def __init__(
        self, model: nn.Module, tasks: Sequence[Task], function: Callable[..., Any], annotator: Annotator
    ) -> None:
        super().__init__()
        self.add_module(_PREFIX, model)
        self.tasks = tasks
        self.function = function
        self.annotator = annotator
        self.layout = _Layout()

    def forward(self, *inputs: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        computed: list[torch.Tensor] = []
        layers = [
            module for module in self.modules() if next(module.parameters(recurse=False), None) is not None
        ]
        hooks = [
            layer.register_forward_hook(lambda _, __, result: computed.extend(tensor_leaves(result)))
            for layer in layers
        ]
        model = getattr(self, _PREFIX)
        # torch.export refuses models that have new tensor attributes afterward.
        with undone(model, values=False), self.annotator:
            try:
                output = self.function(model, *inputs, **named)
            finally:
                for hook in hooks:
                    hook.remove()
            picked = [task.tensors(output) for task in self.tasks]
            returned = [tensor for tensors in [*picked, tensor_leaves(output)] for tensor in tensors]
        self.layout.widths = tuple(len(tensors) for tensors in picked)
        self.layout.returned = len(returned)
        return (*returned, *computed)


def _call_itself(model: nn.Module, *inputs: Any, **named: Any) -> Any:
    """Call ``model``."""
    return model(*inputs, **named)


def tensor_leaves(output: Any) -> list[torch.Tensor]:
    """Collect the tensors of a model's output, from pytrees and plain objects such as dataclasses."""
    tensors = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            tensors.append(leaf)
        elif hasattr(leaf, "__dict__"):
            tensors.extend(tensor_leaves(vars(leaf)))
    return tensors


@contextlib.contextmanager
def _recorded(
    model: nn.Module, methods: Iterable[str], number: Callable[[torch.Tensor], int | None]
) -> Iterator[dict[str, tuple[int | None, ...]]]:
    """Yields a dict that fills with the numbers of the tensors that ``methods`` return."""
    results: dict[str, tuple[int | None, ...]] = {}

    def recording(path: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            results[path] = tuple(map(number, tensor_leaves(result)))
            return result

        return recorded

    def returning(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: results.update(
            {path: tuple(map(number, tensor_leaves(output)))}
        )

    with contextlib.ExitStack() as afterwards:
        for path in methods:
            owner, _, name = path.rpartition(".")
            module = model.get_submodule(owner)
            if name == "forward":  # wrapping it would hide from the exporter which module it runs in
                afterwards.callback(module.register_forward_hook(returning(path)).remove)
                continue
            attributes, method = vars(module), getattr(module, name)
            if name in attributes:
                afterwards.callback(attributes.__setitem__, name, method)
            else:
                afterwards.callback(attributes.pop, name)
            attributes[name] = recording(path, method)
        yield results


@contextlib.contextmanager
def branching_by_values() -> Iterator[None]:
    """Let an export compute real values beside its symbols, so that ``forward`` may branch on random numbers.

    The graph then holds the branch that was taken.
    """
    from torch._functorch import config  # torch's own, loaded with the exporter

    with config.patch(fake_tensor_propagate_real_tensors=True):
        yield


@contextlib.contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Skips the line of code behind each node, which nothing reads and which costs a tenth of the export."""
    name = "do_not_emit_stack_traces"  # older versions of torch lack it
    before = getattr(fx.config, name, None)
    try:
        if before is not None:
            setattr(fx.config, name, True)
        yield
    finally:
        if before is not None:
            setattr(fx.config, name, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's messages about errors, which we raise anyway.

    Also its warning that it temporarily replaces the weight lists of recurrent layers.
    """
    level = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The tensor attributes? .*_flat_weights")
            yield
    finally:
        logging.disable(level)


def clone_if_tensor(argument: Any) -> Any:
    """Clone a tensor, because ``forward`` may write to its input."""
    return argument.clone() if isinstance(argument, torch.Tensor) else argument


def _like(constant: Any, first: torch.Tensor | None) -> Any:
    if isinstance(constant, torch.Tensor) and first is not None:
        return in_precision(constant.to(first.device, copy=True), first.dtype)
    return clone_if_tensor(constant)


def _task_error(error: BaseException | None) -> TaskError | None:
    while error is not None:
        if isinstance(error, TaskError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: BaseException) -> str:
    """The start of torch's message, and the line of the user's code that caused it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines[:2])[:500] or type(error).__name__
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        path = traceback.tb_frame.f_code.co_filename
        if "/torch/" not in path and "disparse_structured" not in path and not path.startswith("<"):
            place = f" (at {path}:{traceback.tb_lineno}, in {traceback.tb_frame.f_code.co_name})"
        traceback = traceback.tb_next
    return f"{type(error).__name__}: {message}{place}"
