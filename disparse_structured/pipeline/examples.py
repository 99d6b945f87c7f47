"""A few inputs, with the outputs of the dense and the pruned network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.arguments import arguments
from disparse_structured.data.batches import (
    ToInputs,
    as_they_are,
    batch_size,
    batches,
    call_model,
    filled,
    take,
    tensor_batches,
    to_device,
)
from disparse_structured.data.image_folder import Images
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.named_tensors import device_of, floating_type_of
from disparse_structured.graph.side_effects import undone
from disparse_structured.report.page.pictures import Example
from disparse_structured.surgery.pruned_graph import fixed_batch
from disparse_structured.tasks import Task

NUMBER = 3
"""How many inputs a page shows."""


def examples_of(
    data: Any,
    dense: tuple[nn.Module, Sequence[Task]],
    pruned: tuple[nn.Module, Sequence[Task]],
    number: int = NUMBER,
    to_inputs: ToInputs | None = None,
) -> list[Example]:
    """The first ``number`` inputs of ``data`` with the outputs of two networks, each given with its tasks.

    Outputs without a row for each input are left out. Both models are left unchanged.

    Raises:
        BatchError: there is no batch, or a model refuses it.
    """
    found: list[Example] = []
    fixed = fixed_batch(pruned[0])
    for batch in _batches(data):
        given = take(arguments(dense[0], batch, to_inputs), slice(number - len(found)))
        wanted = len(found) + batch_size(given)
        for inputs in [given] if fixed is None else filled(given, fixed):
            count = batch_size(inputs)
            ours, theirs = (_outputs(model, inputs, tasks, count) for model, tasks in (dense, pruned))
            for place in range(min(count, wanted - len(found))):
                seen = _seen(inputs, place, data)
                found.append(Example(str(len(found) + 1), seen, _row(ours, place), _row(theirs, place)))
        if len(found) >= number:
            break
    return found


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, torch.Tensor):
        return iter(tensor_batches(data))
    return batches([data] if isinstance(data, Mapping | tuple) else data)


def _outputs(
    model: nn.Module, inputs: tuple[Any, ...], tasks: Iterable[Task], count: int
) -> dict[str, list[np.ndarray]]:
    given = to_device(inputs, device_of(model), floating_type_of(model))
    with undone(model), eval_mode(model), torch.no_grad(), Isolation(0, device_of(model)):
        returned = call_model(model, given, as_they_are)
        tensors = {task.name: task.tensors(returned) for task in tasks}
    return {
        name: [_array(each) for each in own if each.ndim and len(each) == count and not each.is_complex()]
        for name, own in tensors.items()
    }


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    found: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return found


def _row(outputs: Mapping[str, Sequence[np.ndarray]], place: int) -> dict[str, list[np.ndarray]]:
    return {name: [each[place] for each in own] for name, own in outputs.items()}


def _seen(inputs: tuple[Any, ...], place: int, data: Any) -> np.ndarray | None:
    """The input as a picture: as it was before normalization, or from its darkest to its brightest value."""
    pictures = [
        leaf
        for leaf in pytree.tree_leaves(inputs)
        if isinstance(leaf, torch.Tensor) and leaf.ndim == 4 and leaf.shape[1] in (1, 3)
    ]
    if not pictures:
        return None
    values = _array(pictures[0][place]).astype(np.float64)
    if isinstance(data, Images):
        how = data.preprocessing
        mean, std = (np.array(each)[:, None, None] for each in (how.mean, how.std))
        values = (values * std + mean) / how.scale
    else:
        low, high = float(values.min()), float(values.max())
        values = (values - low) / ((high - low) or 1.0) * 255
    shown: np.ndarray = np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0)
    return shown.round().clip(0, 255).astype(np.uint8)
