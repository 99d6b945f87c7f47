"""Progress on standard error: bars and spinners on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

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
    """Prints ``text``, an estimate, if the work takes about ``seconds`` of at least :data:`INTERVAL`."""
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


class Advance(Protocol):
    """A function to call after each step."""

    def __call__(self, note: str = "") -> None:
        """One more step is done; ``note`` is shown beside the number of steps."""


@contextmanager
def advancing(title: str, total: int | None, wanted: bool = True, *, done: int = 0) -> Iterator[Advance]:
    """Yields a function to call after each of ``total`` steps (None: unknown); silent unless ``wanted``.

    ``done`` steps were taken before.
    """
    if wanted and sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(title, total=total, completed=done)

            def show(note: str = "") -> None:
                shown.update(task, advance=1, description=escape(f"{title}  {note}" if note else title))

            yield show
        return

    def advance(note: str = "") -> None:
        nonlocal done
        done += 1
        if wanted:
            of = "" if total is None else f" of {total}"
            line(f"{title}: {done}{of}" + (f"  {note}" if note else ""))

    yield advance
