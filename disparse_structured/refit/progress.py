"""A progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def advancing(title: str, total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """Yield what to call after each step; show a bar if ``wanted`` and standard error is a terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as shown:
        line = shown.add_task(title, total=total)
        yield lambda: shown.advance(line)
