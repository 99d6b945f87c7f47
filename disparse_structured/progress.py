"""Progress on standard error: bars and spinners on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL = 10.0
"""Minimum seconds between two plain lines."""

_last = time.monotonic()


def begin() -> None:
    """Starts the first interval: the next plain line comes no sooner than after :data:`INTERVAL`."""
    global _last
    _last = time.monotonic()


def line(text: str) -> None:
    """Prints ``text`` as a plain line, unless another one was printed less than :data:`INTERVAL` ago."""
    if time.monotonic() - _last >= INTERVAL:
        print(f"disparse: {text}", file=sys.stderr, flush=True)
        begin()


def announce(text: str, seconds: float) -> None:
    """Prints what is expected of work that takes about ``seconds``, if that exceeds :data:`INTERVAL`."""
    if seconds >= INTERVAL:
        print(f"disparse: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str, wanted: bool = True) -> Iterator[None]:
    """Shows ``text`` while the body runs; shows nothing unless ``wanted``."""
    if wanted and sys.stderr.isatty():
        from rich.console import Console  # not needed elsewhere

        with Console(stderr=True).status(text):
            yield
        return
    if wanted:
        line(text)
    yield


@contextmanager
def advancing(title: str, total: int | None, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of ``total`` steps (None: unknown); silent unless ``wanted``."""
    if wanted and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(title, total=total)
            yield lambda: shown.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if wanted:
            line(f"{title}: {done}" + ("" if total is None else f" of {total}"))

    yield advance
