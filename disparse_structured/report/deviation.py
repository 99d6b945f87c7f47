"""How far each task's output moved from the dense network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from disparse_structured.data.deviation import Columns, Deviation
from disparse_structured.report import words
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
        columns: for each task whose output has columns of several sizes, those of one size that are furthest
            from the dense network's with the weights of the result, relative to these columns alone.
        refit: by task, after the refit, if the result was then trained further; otherwise empty.
    """

    samples: int
    checked: int
    cut: Mapping[str, float]
    final: Mapping[str, float]
    columns: Mapping[str, Columns] = field(default_factory=dict)
    refit: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, samples: int, checked: int, cut: Mapping[str, Deviation], final: Mapping[str, Deviation]
    ) -> DeviationFacts:
        """From what was measured by task."""
        columns = {task: moved.columns for task, moved in final.items() if moved.columns is not None}
        before, after = ({task: moved.whole for task, moved in each.items()} for each in (cut, final))
        return cls(samples, checked, before, after, columns)

    def recovered(self, final: Mapping[str, Deviation]) -> DeviationFacts:
        """These facts after a recovery; ``final`` are the deviations that it left."""
        again = self.of(self.samples, self.checked, final, final)
        return replace(again, cut=self.cut, refit=self.final)

    @property
    def judged(self) -> Mapping[str, float]:
        """By task, the value that a tolerance limits: the larger of ``final`` and that of ``columns``."""
        own = {task: columns.deviation for task, columns in self.columns.items()}
        return {task: max(value, own.get(task, value)) for task, value in self.final.items()}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        stages = {"as cut": self.cut}
        refit = self.refit or self.final
        if refit != self.cut:
            stages["refit"] = refit
        if self.refit:
            stages["distilled"] = self.final
        table = numbers_table("deviation from dense", *stages)
        for task in self.cut:
            table.add_row(Text(task), *(words.percent(found.get(task)) for found in stages.values()))
        yield table
        for task, columns in self.columns.items():
            yield columns_line(task, columns)
        where = f"{self.checked} inputs set aside" if self.checked else f"{self.samples} inputs"
        yield Text(f"deviation measured on {where}")


def columns_line(task: str, columns: Columns) -> Text:
    """How far ``columns`` of a task's output deviate."""
    return Text(
        f"{task}, {columns.place}: {words.percent(columns.deviation)} relative to those columns alone"
    )
