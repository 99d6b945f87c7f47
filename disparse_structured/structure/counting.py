"""Counts costs on a real model, independently of the analytic cost model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from disparse_structured.data.batches import batch_size
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode, plain_modes, without_fast_path
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.batching import with_batch
from disparse_structured.graph.capture import Capture
from disparse_structured.graph.named_tensors import detached_tensors, device_of
from disparse_structured.graph.side_effects import undone
from disparse_structured.graph.unknown_sizes import depends_on_data


@plain_modes()
def count_macs(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Count the multiply-accumulates of one forward pass per example.

    The formulas are those of ``torch.utils.flop_counter``: convolutions, linear layers, matrix products,
    attention and recurrent layers count; element-wise work does not. The model runs once, in eval mode,
    without gradients and without torch's fused transformer layers, for which there is no formula. It is not
    changed. If there are several tensors, :func:`~disparse_structured.graph.batching.with_batch` finds which
    of them hold the examples.
    """
    isolated = Isolation(0, device_of(model))
    with isolated:
        example_inputs = with_batch(model, example_inputs)
    with isolated, undone(model), eval_mode(model), _countable(model), _counter() as counter:
        call(model, example_inputs)
    flops: int = counter.get_total_flops()
    return round(flops / 2 / batch_size(example_inputs))


def count_data_dependent(model: nn.Module, captured: Capture, example_inputs: tuple[Any, ...]) -> float:
    """Count the multiply-accumulates, per example, of a graph's operators whose sizes depend on the data.

    ``captured`` is the graph of ``model`` with ``example_inputs``. If it has such operators, it runs once on
    these inputs and counts as :func:`count_macs` does.
    """
    if not any(map(depends_on_data, captured.graph.nodes)):
        return 0.0
    counting = _DataDependent(captured.module)
    with Isolation(0, device_of(model)), _countable(model):
        captured.run(detached_tensors(model), example_inputs, counting.run)
    return counting.flops / 2 / batch_size(example_inputs)


class _DataDependent(fx.Interpreter):
    """Runs a graph and adds up the operations of those nodes whose sizes depend on the data."""

    flops = 0

    def run_node(self, n: fx.Node) -> Any:
        if not depends_on_data(n):
            return super().run_node(n)
        with _counter() as counter:
            result = super().run_node(n)
        self.flops += counter.get_total_flops()
        return result


def _counter() -> Any:
    """Torch's counter for the model as a whole; its record of modules fails where a backward hook does."""
    formulas: dict[str, Callable[..., int]] = {
        "torchvision::deform_conv2d": _deformable,
        "aten::_grouped_mm": _grouped,
        "aten::_trilinear": _bilinear,
        "transformers::grouped_mm_fallback": _grouped,
    }
    own: dict[Any, Callable[..., int]] = {}
    for name, formula in formulas.items():
        library, _, operator = name.partition("::")
        if (found := getattr(getattr(torch.ops, library), operator, None)) is not None:
            own[found] = formula
    counter: Any = FlopCounterMode(display=False, custom_mapping=own)
    counter.mod_tracker = _NoModules()
    return counter


class _NoModules:
    """Stands for the tracker of :class:`FlopCounterMode` and tracks nothing."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Track nothing."""

    def __exit__(self, *error: object) -> None:
        """Track nothing."""


def _deformable(
    inputs: torch.Size, weight: torch.Size, *rest: Any, out_shape: torch.Size, **options: Any
) -> int:
    """The operations of ``torchvision.ops.deform_conv2d``, as those of a convolution."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _grouped(rows: torch.Size, experts: torch.Size, *rest: Any, out_shape: torch.Size, **options: Any) -> int:
    """The operations of a grouped matrix product: each of the rows meets the matrix of one expert."""
    return 2 * math.prod(rows) * experts[-1]


def _bilinear(
    first: torch.Size, weight: torch.Size, *rest: Any, out_shape: torch.Size, **options: Any
) -> int:
    """The operations of a bilinear layer: every output reads each pair of its two inputs' features."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Makes what ``model`` computes count, without gradients."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _products_of(model), without_fast_path():
        yield


@contextmanager
def _products_of(model: nn.Module) -> Iterator[None]:
    """Makes recurrent layers compute by matrix products, because the counter ignores fused kernels."""
    fusing: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        fusing = ()
    before = [backend.enabled for backend in fusing]
    try:
        for backend in fusing:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in zip(fusing, before, strict=True):
            backend.enabled = enabled


def count_parameters(model: nn.Module) -> int:
    """Count the parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
