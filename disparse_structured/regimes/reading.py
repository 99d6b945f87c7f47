"""Reading a loader while somebody is in the middle of reading it: training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from disparse_structured.training.random_streams import generators


@contextmanager
def undisturbed(data: Iterable[Any], seed: int) -> Iterator[None]:
    """Within, ``data`` can be iterated from its beginning; who was reading it goes on where he was.

    A DataLoader has state of its own: generators, which start from ``seed`` within and are put back, and
    persistent workers, which serve one reader at a time, so that others are started within.
    """
    if not isinstance(data, DataLoader):
        yield
        return
    states = [(own, own.get_state()) for own in generators(data)]
    readers, data._iterator = data._iterator, None
    for own, _ in states:
        own.manual_seed(seed)
    try:
        yield
    finally:
        data._iterator = readers
        for own, state in states:
            own.set_state(state)
