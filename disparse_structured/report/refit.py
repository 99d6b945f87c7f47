"""What a refit did: layer by layer, and to the outputs' distance from the dense network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

_SHOWN = 3


@dataclass(frozen=True)
class LayerFacts:
    """How one layer was repaired.

    Args:
        layer: its weight (of a batch norm its running mean), by qualified name.
        features: unknowns of each output channel.
        rows: examples times positions that were fitted on.
        before, after: root of the summed squared difference from the dense network's pre-activation at the
            kept outputs, relative to that pre-activation, on data that was not fitted on; what was wrong
            in earlier layers has been repaired in both.
    """

    layer: str
    features: int
    rows: int
    before: float
    after: float


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that reads or writes something else now and was left as it is, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class RefitFacts:
    """What a refit did.

    Args:
        method: its name and settings.
        samples: examples that were used, those set aside included.
        checked: examples set aside, on which alone ``before`` and ``after`` are measured; 0 if there were
            too few to set any aside, and they are measured on the fitted ones.
        layers: in the order of their repair.
        skipped: those that stayed as they are.
        before, after: per task the relative deviation ``||masked - dense||_2 / ||dense||_2`` of the masked
            network's outputs with the dense weights, and with the refitted ones.
    """

    method: str
    samples: int
    checked: int
    layers: tuple[LayerFacts, ...]
    skipped: tuple[SkippedLayer, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def improved(self) -> int:
        """How many layers got new weights, because those lowered their error on data not fitted on."""
        return sum(layer.after < layer.before for layer in self.layers)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        measured = f"{self.checked} set aside" if self.checked else "the same"
        yield Text(
            f"refit on {self.samples} inputs, measured on {measured}: "
            f"{self.improved} of {len(self.layers)} layers improved"
        )
        reasons: dict[str, list[str]] = {}
        for skipped in self.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped.layer)
        for reason, layers in reasons.items():
            more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
            yield Text(f"not refit: {', '.join(layers[:_SHOWN])}{more}: {reason}", style="yellow")
