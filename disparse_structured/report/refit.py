"""How far the outputs are from the dense network's, before and after a refit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_SHOWN = 3


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that could not be refit."""

    layer: str
    reason: str


@dataclass(frozen=True)
class RefitSummary:
    """What a refit did, and what it brought.

    ``before`` and ``after`` are the deviation of each task's output from the dense network's, relative in the
    Euclidean norm, with the weights as cut and with the refitted ones. ``samples`` inputs were used. The
    deviations are measured on ``checked`` of them that nothing was fitted on, or if that is 0 on all.
    ``layers`` were tried; ``improved`` of them have new weights, because those lowered their error on data
    that they were not fitted on.
    """

    method: str
    samples: int
    checked: int
    layers: int
    improved: int
    skipped: tuple[SkippedLayer, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("deviation from dense", "as cut", "refit"):
            table.add_column(heading, justify="left" if heading.startswith("deviation") else "right")
        for task, before in self.before.items():
            table.add_row(Text(task), *(f"{100 * value:.3g} %" for value in (before, self.after[task])))
        yield table
        measured = f"{self.checked} set aside" if self.checked else "the same"
        yield Text(
            f"refit on {self.samples} inputs, measured on {measured}: "
            f"{self.improved} of {self.layers} layers improved"
        )
        reasons: dict[str, list[str]] = {}
        for skipped in self.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped.layer)
        for reason, layers in reasons.items():
            more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
            yield Text(f"not refit: {', '.join(layers[:_SHOWN])}{more}: {reason}", style="yellow")
