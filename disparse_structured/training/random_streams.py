"""A run's random streams: each part draws from its own, so that any step can be repeated alone.

No random state has to be saved. A step's stream follows from the seed, the process and the step number; an
epoch's loader stream, from the seed and the epoch. To resume within an epoch, its first batches are read
again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from disparse_structured.data.batches import batches
from disparse_structured.data.randomness import Isolation, generator
from disparse_structured.errors import BatchError


def stream(seed: int, device: torch.device, *purpose: object) -> Isolation:
    """Separate random states for each seed and purpose, the same in every process."""
    return Isolation(_number(seed, *purpose), device)


def reseed(seed: int, device: torch.device, *purpose: object) -> None:
    """Reseeds the global generators for a purpose; cheaper than a :func:`stream` around it."""
    number = _number(seed, *purpose)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 (the global one that a callback may draw from)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)


def read_epoch(
    loader: Iterable[Any], seed: int, epoch: int, device: torch.device, *, skip: int = 0, fresh: bool = False
) -> Iterator[Any]:
    """The batches of one epoch, read under the epoch's own random stream, without the first ``skip``.

    With ``fresh``, a DataLoader's persistent workers are restarted: they would carry random states from one
    epoch into the next.

    Raises :class:`BatchError` if there are fewer than ``skip`` batches, or none at all.
    """
    _announce(loader, seed, epoch, fresh)
    isolated = stream(seed, device, "loader", epoch)
    source = batches(loader)
    end = object()
    position = 0
    while True:
        with isolated:
            batch = next(source, end)
        if batch is end:
            break
        position += 1
        if position > skip:
            yield batch
    if position < skip:
        raise BatchError(
            f"the loader yields {position} batches in epoch {epoch}, but the checkpoint was written after "
            f"{skip}. Pass the loader that the run was started with, or remove the checkpoint."
        )


@contextmanager
def kept_generators(loader: Iterable[Any]) -> Iterator[None]:
    """Restores the states of a DataLoader's own generators at the end."""
    states = [(own, own.get_state()) for own in generators(loader)]
    try:
        yield
    finally:
        for own, state in states:
            own.set_state(state)


def _announce(loader: Iterable[Any], seed: int, epoch: int, fresh: bool) -> None:
    if not isinstance(loader, DataLoader):
        return
    for part in _samplers(loader):
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
    for index, own in enumerate(generators(loader)):
        own.manual_seed(_number(seed, "generator", epoch, index))
    if fresh and loader.persistent_workers:
        loader._iterator = None


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    parts = [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    return list({id(part): part for part in parts if part is not None}.values())


def generators(loader: Iterable[Any]) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers own, each once; none for other loaders."""
    if not isinstance(loader, DataLoader):
        return []
    owned = [getattr(part, "generator", None) for part in (loader, *_samplers(loader))]
    return list({id(own): own for own in owned if isinstance(own, torch.Generator)}.values())


def _number(seed: int, *purpose: object) -> int:
    return int(generator(seed, "training", *purpose).integers(2**62))
