"""Reads a loader that training is iterating over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from disparse_structured.training.random_streams import generators


@contextmanager
def undisturbed(data: Iterable[Any], seed: int) -> Iterator[None]:
    """Inside, ``data`` can be iterated from its beginning; an outer iteration resumes where it was.

    A DataLoader has its own state. Its generators start from ``seed`` inside and are restored afterward.
    Its persistent workers serve one reader at a time, so others are started inside.
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
