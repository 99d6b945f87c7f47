"""Several processes, started by ``torchrun``: how they share a batch and what they exchange.

Every process reads the same batches and trains on a chunk of each. The gradient is that of the mean over
all samples. Batch normalization sees only its own process's chunk. Its running statistics, like all other
buffers, are taken from the first process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import ToInputs, model_inputs
from disparse_structured.errors import BatchError, require
from disparse_structured.training.config import Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(device: torch.device, precision: Precision) -> Fabric:
    """Lightning Fabric for the processes that ``torchrun`` started, or for this one alone on ``device``.

    Under ``torchrun`` each process takes the device with its local rank. CPU processes communicate over
    gloo.
    """
    require("train", "lightning_fabric")
    # Imported here because it is slow, and most of the package does not need it.
    with _quiet():
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        count = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        if count == 1:
            devices: Any = 1 if device.index is None else [device.index]
            fabric = Fabric(accelerator=device.type, devices=devices, precision=precision)
        else:
            local = int(os.environ["LOCAL_WORLD_SIZE"])
            fabric = Fabric(
                accelerator=device.type,
                devices=local,
                num_nodes=count // local,
                # A task's head gets no gradient if its weight is 0 or its branch is not taken.
                strategy=DDPStrategy(find_unused_parameters=True, broadcast_buffers=False),
                precision=precision,
            )
        fabric.launch()
    return fabric


def share(
    batch: Any, model: nn.Module, to_inputs: ToInputs | None, rank: int, count: int
) -> tuple[Any, float]:
    """Process ``rank``'s contiguous chunk of ``batch``, and the fraction of the samples in it.

    Tensors whose first dimension is that of the model's first input are cut, and so are lists of that
    length below the batch's top level. If there are fewer samples than processes, some processes get one
    sample with the fraction 0.

    Raises:
        BatchError: the model's input holds no tensor with a first dimension.
    """
    if count == 1:
        return batch, 1.0
    given = model_inputs(model, batch, to_inputs)
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor) and leaf.dim()]
    if not sizes or not sizes[0]:
        raise BatchError(
            "several processes share each batch, but the model's input holds no tensor with samples along "
            "its first dimension. Train with one process, or change what the loader yields."
        )
    samples = sizes[0]
    begin, end = samples * rank // count, samples * (rank + 1) // count
    part = slice(begin, end) if end > begin else slice(0, 1)
    return _cut(batch, samples, part, top=True), (end - begin) / samples


def same_buffers(model: nn.Module) -> None:
    """Broadcasts the first process's buffers to all others, in one message per type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for buffer in model.buffers():
        by_type.setdefault(buffer.dtype, []).append(buffer)
    with torch.no_grad():
        for buffers in by_type.values():
            together = torch.cat([buffer.reshape(-1) for buffer in buffers])
            torch.distributed.broadcast(together, src=0)
            for buffer, values in zip(buffers, together.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(values.view_as(buffer))


def _cut(value: Any, samples: int, part: slice, top: bool = False) -> Any:
    if isinstance(value, Tensor):
        return value[part] if value.dim() and value.shape[0] == samples else value
    if isinstance(value, Mapping):
        return {key: _cut(item, samples, part) for key, item in value.items()}
    if isinstance(value, tuple | list):
        whole = all(isinstance(item, Tensor) and item.shape[:1] == (samples,) for item in value)
        if isinstance(value, list) and len(value) == samples and not top and not whole:
            return value[part]
        items = [_cut(item, samples, part) for item in value]
        make = getattr(type(value), "_make", type(value))  # named tuples take their fields one by one
        return make(items)
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning_fabric")
    import lightning_fabric  # noqa: F401 (its import sets the level)

    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
