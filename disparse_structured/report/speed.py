"""What a latency budget came to, as frozen data, and its text view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

BUSY = 0.2
"""Where the quartiles of the measured share are further apart than this share of it, nothing can be said."""


@dataclass(frozen=True)
class StairFacts:
    """How the time depends on the width of one group.

    Args:
        group: its name.
        won: milliseconds that its removals save, predicted with all other groups as pruned.
        widths: ascending, up to the dense width; empty for groups that save little.
        ms: predicted for the network at each of ``widths``, with all other groups as pruned.
    """

    group: str
    won: float
    widths: tuple[int, ...] = ()
    ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class SpeedFacts:
    """Predicted and measured latency of the pruned file; shares are of the dense file's latency.

    ``asked``, ``predicted`` and ``measured`` are such shares, ``lower`` and ``upper`` the quartiles of the
    measured one over ``rounds`` runs of both files in turn. ``dense_ms`` and ``pruned_ms`` are medians.
    ``macs`` is the share of the MACs that is kept, ``exports`` the number of files that were measured,
    ``runtime`` says where. ``stairs`` describe the groups that shrank, those that save most first.
    """

    asked: float
    predicted: float
    measured: float
    lower: float
    upper: float
    dense_ms: float
    pruned_ms: float
    macs: float
    exports: int
    rounds: int
    runtime: Mapping[str, str]
    stairs: tuple[StairFacts, ...] = ()

    @property
    def ideal(self) -> float:
        """The speed-up as a share of the ideal one, which is as large as MACs are fewer."""
        return self.macs / self.measured

    @property
    def busy(self) -> bool:
        """Whether the times differ too much to say anything."""
        return self.upper - self.lower > BUSY * self.measured

    @property
    def verdict(self) -> str:
        """``"faster"`` or ``"not faster"`` than the dense network, or that this cannot be told."""
        if self.busy:
            return "the machine is too busy to say whether it is faster; measure again when it is idle"
        return "faster than the dense network" if self.upper < 1 else "not faster than the dense network"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(
            f"latency: {self.asked:.1%} of dense asked, {self.predicted:.1%} predicted, {self.measured:.1%} "
            f"measured (quartiles {self.lower:.1%} to {self.upper:.1%}), {self.dense_ms:.3g} to "
            f"{self.pruned_ms:.3g} ms: {self.verdict}",
            style="bold yellow" if self.busy or self.upper >= 1 else "",
        )
        where = ", ".join(f"{name} {value}" for name, value in self.runtime.items())
        files = "1 export" if self.exports == 1 else f"{self.exports} exports"
        yield Text(f"{self.ideal:.0%} of the ideal speed-up at {self.macs:.1%} of the MACs; {files}; {where}")
