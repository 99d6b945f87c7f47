"""Reading a loader while somebody is in the middle of reading it: training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader


@contextmanager
def undisturbed(data: Iterable[Any], seed: int) -> Iterator[None]:
    """Within, ``data`` can be iterated from its beginning; who was reading it goes on where he was.

    A DataLoader has state of its own: generators, which start from ``seed`` within and are put back, and
    persistent workers, which serve one reader at a time, so that others are started within.
    """
    if not isinstance(data, DataLoader):
        yield
        return
    states = [(own, own.get_state()) for own in _generators(data)]
    readers, data._iterator = data._iterator, None
    for own, _ in states:
        own.manual_seed(seed)
    try:
        yield
    finally:
        data._iterator = readers
        for own, state in states:
            own.set_state(state)


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    parts = [loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    owned = [getattr(part, "generator", None) for part in parts]
    return list({id(own): own for own in owned if isinstance(own, torch.Generator)}.values())
