"""What was to be achieved, and what the rows say."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.no_training.bench import INPUTS
from benchmarks.no_training.results import Results, crossing, delta_t, mean_deviation, worst

OURS = "ours"
EPOCHS = 2
"""Of training after pruning, in the goal that allows some."""

LOSS = -2.0
"""ΔT at which the MACs are compared."""

_SCENES = "nyuv2/"


@dataclass(frozen=True)
class Goal:
    """One line: what is measured, on which network, our figure, stock's figure, and whether it is met."""

    what: str
    network: str
    found: str
    against: str
    goal: str
    met: bool


def goals(results: Results) -> list[Goal]:
    """The goals that there are rows for."""
    lines: list[Goal] = []
    for network in results.networks:
        lines += _deviation(results, network)
    for network in results.networks:
        if network.startswith(_SCENES):
            lines += _figures(results, network)
    for network in results.networks:
        lines += _finetuned(results, network)
    for network in results.networks:
        lines += _macs(results, network)
    return lines


def _deviation(results: Results, network: str) -> Iterator[Goal]:
    ours = results.values(mean_deviation, network, OURS, 0.65)
    best = results.best(mean_deviation, network, ("stock",), 0.65, most=False)
    if ours and best:
        mine = statistics.fmean(ours)
        theirs = statistics.fmean(results.values(mean_deviation, network, best, 0.65))
        ratio = mine / theirs
        yield Goal(
            "deviation at 65 % MACs, share of the best stock variant's",
            network,
            f"{mine:.3f} = {ratio:.2f} ×",
            f"{theirs:.3f} ({best})",
            "≤ 0.25 ×",
            ratio <= 0.25,
        )


def _figures(results: Results, network: str) -> Iterator[Goal]:
    for macs, goal in ((0.5, -1.0), (0.3, -3.0)):
        values = results.values(delta_t, network, OURS, macs)
        if not values:
            continue
        best = results.best(delta_t, network, ("stock",), macs, most=True)
        theirs = statistics.fmean(results.values(delta_t, network, best, macs)) if best else None
        for what, figure, limit in (("ΔT", delta_t, goal), ("worst task", worst, 2 * goal)):
            mine = statistics.fmean(results.values(figure, network, OURS, macs))
            against = f"{theirs:+.1f} % ({best})" if theirs is not None and figure is delta_t else ""
            yield Goal(
                f"{what} at {100 * macs:.0f} % MACs, no training",
                network,
                f"{mine:+.1f} %",
                against,
                f"≥ {limit:+.0f} %",
                mine >= limit,
            )


def _finetuned(results: Results, network: str) -> Iterator[Goal]:
    rows = results.at(network, OURS, 0.3, INPUTS, EPOCHS)
    if rows:
        mine = statistics.fmean(row.delta_t for row in rows)
        others = {
            name: statistics.fmean(row.delta_t for row in found)
            for name in results.methods("stock")
            if (found := results.at(network, name, 0.3, INPUTS, EPOCHS))
        }
        best = max(others, key=others.__getitem__, default=None)
        yield Goal(
            f"ΔT at 30 % MACs after {EPOCHS} epochs",
            network,
            f"{mine:+.1f} %",
            f"{others[best]:+.1f} % ({best})" if best else "",
            "≥ −0.5 %",
            mine >= -0.5,
        )


def _macs(results: Results, network: str) -> Iterator[Goal]:
    mine = crossing(results.curve(delta_t, network, ("ours",), most=True), LOSS)
    theirs = crossing(results.curve(delta_t, network, ("stock",), most=True), LOSS)
    if mine and theirs:
        ratio = mine.macs / theirs.macs
        bound = "≤ " if mine.is_bound else ""
        yield Goal(
            f"MACs at which ΔT = {LOSS:.0f} %, share of the best stock variant's".replace("-", "−"),
            network,
            f"{mine} = {bound}{ratio:.2f} ×",
            str(theirs),
            "≤ 0.7 ×",
            ratio <= 0.7,
        )
