"""Objects that hold values outside attributes and Python's containers, and how to restore those values."""

from __future__ import annotations

import array
import collections
import queue
import random
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

HOLDERS = (
    collections.ChainMap, collections.UserDict, collections.UserList, queue.Queue, threading.local,
    weakref.WeakKeyDictionary, weakref.WeakSet, weakref.WeakValueDictionary,
)  # fmt: skip
"""Classes of the standard library whose contents are in their attributes."""


VALUES = (
    torch.Tensor, np.ndarray, array.array, bytearray, random.Random, torch.Generator, np.random.RandomState,
    np.random.Generator, np.random.BitGenerator, ContextVar,
)  # fmt: skip
"""Tensors and arrays, which are written in place, sources of random numbers, and context variables."""


def restoring(item: Any) -> Callable[[], object] | None:
    """Remember the values that ``item``, one of :data:`VALUES`, holds, and return what restores them.

    None for parameters, and for what cannot be written or read.

    >>> source = random.Random(0)
    >>> undo = restoring(source)
    >>> first = source.random()
    >>> undo()
    >>> source.random() == first
    True
    """
    if type(item) is torch.Tensor:
        return _of_tensor(item)
    if isinstance(item, np.ndarray):
        return _of_array(item)
    if isinstance(item, array.array | bytearray):
        return _of_sequence(item)
    if isinstance(item, random.Random):
        state = item.getstate()
        return lambda: item.setstate(state)
    if isinstance(item, torch.Generator):
        drawn = item.get_state()
        return lambda: item.set_state(drawn)
    if isinstance(item, np.random.RandomState):
        legacy = item.get_state()
        return lambda: item.set_state(legacy)
    if isinstance(item, np.random.Generator | np.random.BitGenerator):
        bits = item if isinstance(item, np.random.BitGenerator) else item.bit_generator
        position = bits.state
        return lambda: setattr(bits, "state", position)
    if isinstance(item, ContextVar):
        return _of_variable(item)
    return None


def _of_tensor(item: torch.Tensor) -> Callable[[], object] | None:
    if item.is_meta or item.layout != torch.strided:
        return None
    before = item.detach().clone()

    def undo() -> None:
        if item.shape != before.shape or item.dtype != before.dtype:
            item.data = before
        elif not torch.equal(item, before):
            item.data.copy_(before)

    return undo


def _of_array(item: np.ndarray[Any, Any]) -> Callable[[], object] | None:
    if isinstance(item, np.memmap) or not item.flags.writeable:
        return None
    before = item.copy()

    def undo() -> None:
        item[...] = before

    return undo


def _of_sequence(item: Any) -> Callable[[], object]:
    before = item[:]

    def undo() -> None:
        item[:] = before

    return undo


def _of_variable(item: ContextVar[Any]) -> Callable[[], object] | None:
    try:
        before = item.get()
    except LookupError:  # a value that is set later cannot be removed again
        return None

    def undo() -> None:
        if item.get() is not before:
            item.set(before)

    return undo
