"""Says on standard error what the demo is doing, and keeps the time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """Silent unless ``progress``; ``seconds`` holds how long each step took, by the wall clock."""

    def __init__(self, progress: bool) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, quiet=not progress, highlight=False)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Announces a step, and times the body."""
        self._console.print(f"[bold]{name}[/bold]: {text}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._console.print(f"  [dim]{self.seconds[name]:.0f} s[/dim]")

    def losses(self, epoch: int, means: Mapping[str, float]) -> None:
        """Each task's mean loss over an epoch, as the fine-tuning reports it."""
        shown = "  ".join(f"{task} {mean:.3f}" for task, mean in means.items())
        self._console.print(f"  epoch {epoch + 1}  {shown}")
