"""Tells on standard error what the demo is doing, and times its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """Silent unless ``shown``. ``seconds`` holds the wall-clock time of each step."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, quiet=not shown, highlight=False)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Announces a step, and times the body."""
        self._console.print(f"[bold]{name}[/bold]: {text}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._console.print(f"  [dim]{self.seconds[name]:.0f} s[/dim]")

    def losses(self, epoch: int, means: Mapping[str, float]) -> None:
        """Shows each task's mean loss over an epoch."""
        shown = "  ".join(f"{task} {mean:.3f}" for task, mean in means.items())
        self._console.print(f"  epoch {epoch + 1}  {shown}")
