"""``--data`` and ``--example``: inputs from a file, from the user's own code, or at random."""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from disparse_structured.cli.lookup import find, user_code
from disparse_structured.cli.options import TENSOR_FILES
from disparse_structured.cli.usage import UsageError, reason
from disparse_structured.data.arguments import arguments
from disparse_structured.data.batches import batches, take, to_device
from disparse_structured.data.calibration import Marked
from disparse_structured.data.image_folder import Images, images
from disparse_structured.data.precision import first_inexact

CHECK_SAMPLES = 8
"""How many samples of the first batch an ONNX file is checked on."""


def load_data(spec: str, option: str = "--data") -> Any:
    """What ``spec`` names: a tensor, a dict of tensors, or batches that can be iterated more than once.

    A file holds one tensor ``[N, ...]``, or several under the names of ``forward``'s parameters. Nothing
    in a file is executed.

    Raises:
        UsageError: the file or loader cannot be read, or holds something else.
    """
    path = Path(spec)
    return _batch(path, option) if path.suffix in TENSOR_FILES else _loader(spec, option)


def load_images(arguments: argparse.Namespace, model: nn.Module | None, folder: str | None = None) -> Images:
    """The pictures of ``--images``, or of ``folder``. What the options do not state is taken from ``model``.

    Raises:
        DataError: there is nothing to read.
        OptionError: how they are prepared is not known.
    """
    steps = {name: getattr(arguments, name) for name in ("resize", "crop", "interpolation", "frames")}
    return images(
        folder or arguments.images,
        arguments.size,
        arguments.mean,
        arguments.std,
        like=arguments.preprocessing or model,
        **{name: value for name, value in steps.items() if value is not None},
    )


def as_batches(data: Any, limit: int | None = None) -> Iterable[Any]:
    """What :func:`load_data` returned, as batches; the first ``limit`` of them."""
    loader = [data] if isinstance(data, torch.Tensor | Mapping) else data
    return loader if limit is None else Batches(lambda: itertools.islice(iter(loader), limit), "--data")


def first_inputs(model: nn.Module, data: Any, samples: int, marked: Marked) -> tuple[Any, ...]:
    """Return the arguments of ``forward`` for the first examples, on the device of the model's weights.

    Args:
        samples: how many examples of the first batch.
        marked: marks in the arguments which tensors have a batch dimension.

    Raises:
        BatchError: there is no batch, or it does not hold the arguments.
    """
    inputs = arguments(model, next(batches(as_batches(data))), None)
    return take(marked(_placed(model, inputs)), slice(samples))


def random_example(model: nn.Module, shapes: Iterable[tuple[int, ...]], seed: int) -> tuple[Any, ...]:
    """Standard normal inputs of these shapes, with the model's device and dtype."""
    generator = torch.Generator().manual_seed(seed)
    return _placed(model, tuple(torch.randn(shape, generator=generator) for shape in shapes))


class Batches:
    """The batches of what ``source`` returns; they can be iterated more than once."""

    def __init__(self, source: Callable[[], Any], option: str) -> None:
        self._source = source
        self._option = option

    def __iter__(self) -> Iterator[Any]:
        with user_code(f"{self._option}: reading a batch"):
            yield from self._source()

    def __len__(self) -> int:
        """The number of batches; raises :class:`TypeError` if the source has none."""
        return len(self._source())


def _loader(spec: str, option: str) -> Any:
    found = find(spec, option)
    made, again = found, None
    if callable(found) and not isinstance(found, Iterable):
        with user_code(f"{option} {spec!r}: calling it"):
            made = found()
        again = found
    if isinstance(made, torch.Tensor | Mapping):
        return made
    if not isinstance(made, Iterable):
        what = "returned something" if again else "is"
        raise UsageError(
            f"{option} {spec!r} {what} of type {type(made).__name__}, which yields no batches. Name a "
            "loader, a list of batches, or a function without arguments that returns one."
        )
    if isinstance(made, DataLoader):
        return made  # training asks it about its samplers, generators and workers
    if not isinstance(made, Iterator):
        return Batches(lambda: made, option)
    if again is not None:
        return Batches(again, option)
    (start,) = itertools.tee(made, 1)
    return Batches(lambda: copy.copy(start), option)  # a copy keeps what the others have read


def _batch(path: Path, option: str) -> Any:
    try:
        content = _read(path)
    except Exception as error:  # NumPy, zip, pickle, safetensors and the file system share no base class
        raise UsageError(
            f"{option} {str(path)!r} cannot be read ({reason(error)}). "
            "Give a file that holds numbers only: np.save, torch.save of a tensor, or safetensors."
        ) from error
    tensors = content if isinstance(content, Mapping) else {"": content}
    wrong = [type(each).__name__ for each in tensors.values() if not isinstance(each, torch.Tensor)]
    if wrong or not tensors:
        held = f"a value of type {wrong[0]}" if wrong else "nothing"
        raise UsageError(
            f"{option} {str(path)!r} holds {held}. Save one tensor [N, ...], or a dict of tensors named like "
            "the parameters of forward."
        )
    return dict(tensors) if len(tensors) > 1 else next(iter(tensors.values()))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".npy", ".npz"):
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return torch.from_numpy(found)
        with found:
            return {name: torch.from_numpy(found[name]) for name in found.files}
    return torch.load(path, map_location="cpu", weights_only=True)


def _placed(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    first = first_inexact(model.parameters())
    return inputs if first is None else tuple(to_device(inputs, first.device, first.dtype))
