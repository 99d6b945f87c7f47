"""Storage for activations: in memory up to a limit, in mapped files beyond it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from disparse_structured.errors import BatchError


class Storage:
    """Counts the memory of the values it holds, and keeps what exceeds ``limit`` bytes in files.

    The system may drop a mapped file's pages and read them again. The files are in the temporary folder
    (``TMPDIR``) and disappear with their last tensor, whatever happens. Tensors on other devices stay
    there, uncounted. Views remain views of what is already held.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._live = 0
        self._holders: Counter[int] = Counter()
        self._filed: set[int] = set()

    def hold(self, value: Any) -> Any:
        """Return ``value``, in memory or in files; it counts until :meth:`release`."""
        return pytree.tree_map(self._hold, value)

    def release(self, value: Any) -> None:
        """Release what :meth:`hold` returned."""
        for tensor in _tensors(value):
            place, size = _place(tensor)
            self._holders[place] -= 1
            if not self._holders[place]:
                del self._holders[place]
                if place in self._filed:
                    self._filed.discard(place)
                else:
                    self._live -= size

    def _hold(self, leaf: Any) -> Any:
        if next(_tensors(leaf), None) is None:
            return leaf
        place, size = _place(leaf)
        if place not in self._holders:
            if self._live + size > self._limit:
                leaf = _in_file(leaf)
                place, size = _place(leaf)
                self._filed.add(place)
            else:
                self._live += size
        self._holders[place] += 1
        return leaf


def _tensors(value: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(value):
        plain = isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.layout is torch.strided
        if plain and leaf.untyped_storage().nbytes():
            yield leaf


def _place(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _in_file(tensor: Tensor) -> Tensor:
    """A copy with the same strides, over a mapped file that is already unlinked."""
    size = tensor.untyped_storage().nbytes()
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:  # a mapped file that does not fit on the disk kills the process
        raise BatchError(
            f"the activations exceed the memory given for them, and {tempfile.gettempdir()!r} has "
            f"only {free / 2**30:.2f} GiB free. Give more memory= to the method, set TMPDIR to a "
            "folder with more space, or use fewer or smaller inputs."
        )
    count = size // tensor.element_size()
    number, path = tempfile.mkstemp(prefix="disparse-", suffix=".activations")
    os.close(number)
    try:
        flat = torch.from_file(path, shared=True, size=count, dtype=tensor.dtype)
    finally:
        with contextlib.suppress(PermissionError):  # Windows keeps the name of a file in use
            os.unlink(path)
    flat.copy_(tensor.as_strided((count,), (1,), 0))
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
