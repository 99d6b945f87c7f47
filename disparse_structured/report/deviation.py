"""How far each task's output moved from the dense network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class DeviationFacts:
    """The relative deviation ``||pruned - dense||_2 / ||dense||_2`` of each task's output.

    Args:
        samples: examples that were read.
        checked: how many of them were set aside, and alone measured on; 0 if there were too few to set any
            aside, and all were measured on.
        cut: by task, with the weights of the dense network.
        final: by task, with the weights of the result; equal to ``cut`` where nothing was refit.
    """

    samples: int
    checked: int
    cut: Mapping[str, float]
    final: Mapping[str, float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        refit = self.final != self.cut
        headings = (
            ("deviation from dense", "as cut", "refit") if refit else ("deviation from dense", "as cut")
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in headings:
            table.add_column(heading, justify="left" if heading.startswith("deviation") else "right")
        for task, cut in self.cut.items():
            values = (cut, self.final[task]) if refit else (cut,)
            table.add_row(Text(task), *(f"{100 * value:.3g} %" for value in values))
        yield table
        where = f"{self.checked} inputs set aside" if self.checked else f"{self.samples} inputs"
        yield Text(f"deviation measured on {where}")
