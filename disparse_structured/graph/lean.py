"""Spares torch's exporters work whose results nothing reads."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from torch.fx._lazy_graph_module import _use_lazy_graph_module


@contextlib.contextmanager
def lean_export() -> Iterator[None]:
    """Let graphs write their Python code only when they run, and pause the garbage collector.

    The exporters' passes each write and compile such code. An export makes many objects, and keeps most of
    them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _use_lazy_graph_module(True):
            yield
    finally:
        if enabled:
            gc.enable()
