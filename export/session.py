"""ONNX Runtime on the CPU: open a file, run it, and report clearly what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batched_leaves
from disparse_structured.errors import ExportError
from disparse_structured.export.reasons import reason

BATCH = "batch"
"""The name of a free batch dimension."""

_SILENT = 4


def open_session(
    file: Path | bytes,
    *,
    threads: int,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    configure: Callable[[onnxruntime.SessionOptions], None] = lambda options: None,
) -> onnxruntime.InferenceSession:
    """A session that runs a file, or its content, on ``threads`` threads, one operator at a time.

    Args:
        configure: sets further options.

    Raises:
        ExportError: the file is missing, or ONNX Runtime refuses it.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ExportError(f"there is no ONNX file at {file}. Export the model first.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    # An idle session's threads would otherwise keep spinning and slow down the next session timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    configure(options)
    try:
        return onnxruntime.InferenceSession(file, options, providers=list(providers))
    except Exception as error:
        name = file.name if isinstance(file, Path) else "the model"
        if isinstance(error, InvalidProtobuf):
            raise ExportError(f"{name} is not a valid ONNX file. Export the model again.") from error
        raise ExportError(
            f"ONNX Runtime cannot load {name}: {reason(error)}. Its CPU provider lacks kernels for some "
            "operators, mostly in float64, float16 and bfloat16: export model.float()."
        ) from error


def run_session(session: onnxruntime.InferenceSession, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """All outputs of ``session``, in order, on ``inputs`` given in order.

    Raises:
        ExportError: ONNX Runtime refuses the inputs, or gives a shape that the file does not declare.
    """
    feed = feed_of(session, inputs)
    try:
        outputs: list[np.ndarray] = session.run(None, feed)
    except Exception as error:
        raise ExportError(f"ONNX Runtime refuses {shapes_text(inputs)}: {reason(error)}") from error
    for declared, output in zip(session.get_outputs(), outputs, strict=True):
        sizes = zip(declared.shape, output.shape, strict=False)
        wrong = any(isinstance(size, int) and size != actual for size, actual in sizes)
        if wrong or len(declared.shape) != output.ndim:
            raise ExportError(
                f"on {shapes_text(inputs)} the output {declared.name!r} has the shape {output.shape}, "
                f"but the file declares {declared.shape}."
            )
    return outputs


def feed_of(session: onnxruntime.InferenceSession, inputs: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """``inputs`` as arrays under the input names of ``session``."""
    names = [declared.name for declared in session.get_inputs()]
    if len(names) != len(inputs):
        raise ExportError(f"the ONNX file takes {len(names)} inputs {names}, but {len(inputs)} were given.")
    return {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}


def shaped_for(
    session: onnxruntime.InferenceSession,
    inputs: tuple[Any, ...],
    *,
    batch: int | None = None,
    size: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """``inputs``, arguments of ``forward``, in shapes that a file takes; values are repeated or cut.

    Args:
        session: the open file.
        inputs: as many tensors as the file takes, in order.
        batch: examples, in inputs that have a batch dimension; others are shared by all examples.
        size: the other free dimensions of each such input that has so many, such as height and width.

    Raises:
        ExportError: the file takes other inputs, or ``batch`` or ``size`` differs from a fixed dimension.
    """
    declared = [(each.name, each.shape) for each in session.get_inputs()]
    leaves, spec = pytree.tree_flatten(inputs)
    batched = batched_leaves(inputs)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    wanted, found = [len(shape) for _, shape in declared], [leaves[place].ndim for place in places]
    if wanted != found:
        raise ExportError(
            f"the ONNX file takes inputs of {wanted} dimensions, but the model's have {found}. Export again."
        )
    for place, (name, shape) in zip(places, declared, strict=True):
        asked = _asked(name, shape, batch, size) if batched[place] else _asked(name, shape, None, None)
        for dim, length in enumerate(asked):
            if length is not None:
                repeated = torch.arange(length) % max(leaves[place].shape[dim], 1)
                leaves[place] = leaves[place].index_select(dim, repeated)
    shaped: tuple[Any, ...] = pytree.tree_unflatten(leaves, spec)
    return shaped


def _asked(
    name: str, shape: Sequence[int | str], batch: int | None, size: tuple[int, ...] | None
) -> list[int | None]:
    """The length of each dimension of an input; None where any length will do."""
    asked = [length if isinstance(length, int) else None for length in shape]
    wishes: dict[int, int] = {}
    if batch is not None:
        wishes[0] = batch
    if size is not None and len(shape) == 2 + len(size):
        wishes.update(enumerate(size, 2))
    for dim, length in wishes.items():
        if asked[dim] not in (None, length):
            raise ExportError(
                f"the ONNX file's input {name!r} has the shape {list(shape)}, but the batch {batch or 'any'} "
                f"and the size {size or 'any'} were asked for. Export it for that shape first: `disparse "
                "export`."
            )
        asked[dim] = length
    return asked


def free_batch(session: onnxruntime.InferenceSession) -> bool:
    """Whether a file takes any number of examples."""
    return any(each.shape and each.shape[0] == BATCH for each in session.get_inputs())


def shapes_text(inputs: Sequence[torch.Tensor]) -> str:
    """``"inputs of 2x3x64x64 and 2"``: the shapes, for messages."""
    shapes = ["x".join(map(str, tensor.shape)) or "a scalar" for tensor in inputs]
    return f"inputs of {' and '.join(shapes)}"
