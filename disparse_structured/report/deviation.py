"""How far each task's output moved from the dense network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from disparse_structured.report.text import numbers_table


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
        table = numbers_table("deviation from dense", "as cut", *(["refit"] if refit else []))
        for task, cut in self.cut.items():
            values = (cut, self.final[task]) if refit else (cut,)
            table.add_row(Text(task), *(f"{100 * value:.3g} %" for value in values))
        yield table
        where = f"{self.checked} inputs set aside" if self.checked else f"{self.samples} inputs"
        yield Text(f"deviation measured on {where}")
