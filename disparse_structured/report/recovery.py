"""How a recovery changed the outputs' deviation from the dense network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text


@dataclass(frozen=True)
class RecoveryFacts:
    """What a recovery did, by its own measurements.

    Args:
        method: its name and settings.
        samples: inputs that were used, those held out included.
        checked: inputs held out, on which alone ``before`` and ``after`` are measured.
        views: how inputs were varied; empty if they were not.
        steps: steps that were planned; 0 if it failed, so that the result is as the refit left it.
        taken: steps that were taken.
        kept: the step whose weights the result has; 0 if no step was an improvement.
        stopped: why it ended before all steps; empty if it did not.
        before, after: per task the relative deviation ``||pruned - dense||_2 / ||dense||_2`` of the output.
        measured: the steps after which the deviations were measured.
        course: per task, the deviations at these steps.
    """

    method: str
    samples: int
    checked: int
    views: str
    steps: int
    taken: int
    kept: int
    stopped: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    measured: tuple[int, ...]
    course: Mapping[str, tuple[float, ...]]

    @classmethod
    def failed(cls, method: str, reason: str) -> RecoveryFacts:
        """Those of a recovery that ended with an error."""
        return cls(method, 0, 0, "", 0, 0, 0, reason, {}, {}, (), {})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.steps:
            yield Text(f"NOT DISTILLED: {self.stopped}", style="bold yellow")
            return
        views = f" ({self.views})" if self.views else ""
        yield Text(
            f"distilled on {self.samples} inputs{views}, measured on {self.checked} held out: "
            f"{self.taken} of {self.steps} steps, the weights of step {self.kept} kept"
        )
        if self.stopped:
            yield Text(f"distillation ended early: {self.stopped}", style="yellow")
