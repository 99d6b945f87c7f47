"""A progress bar, or lines, with each task's mean loss over the epoch, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from disparse_structured.progress import line

Shown = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the epoch, the number of steps, and the losses so far in the epoch."""


@contextmanager
def bar(wanted: bool, epochs: int, steps: int) -> Iterator[Shown]:
    """A function that advances the bar on a terminal, and prints occasional lines elsewhere."""
    if not (wanted and sys.stderr.isatty()):

        def tell(epoch: int, done: int, losses: Mapping[str, float]) -> None:
            if wanted:
                means = "  ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
                line(f"epoch {epoch + 1} of {epochs}, step {done} of {steps}  {means}")

        yield tell
        return
    columns = (
        TextColumn("epoch {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"1/{epochs}", total=steps, losses="")

        def show(epoch: int, done: int, losses: Mapping[str, float]) -> None:
            text = escape("  ".join(f"{name} {loss:.4g}" for name, loss in losses.items()))
            shown.update(task, completed=done, description=f"{epoch + 1}/{epochs}", losses=text)

        yield show
