"""The page: all blocks and plots that there are rows for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from benchmarks.baselines import METHODS
from benchmarks.harness.views import place, sections
from benchmarks.tables import branches, figures, loudness, ranks, variants, views
from benchmarks.tables.cells import Cell, Row
from benchmarks.tables.problems import TITLES
from benchmarks.tables.runner import Workspace
from benchmarks.tables.settings import REGIMES, SCALES, Scale

NAME = "disparse_tables.md"
WRITER = "benchmarks.disparse_tables"
EXTRAS: Mapping[str, ModuleType] = {"loss-scale": loudness, "branch": branches, "variants": variants}
"""The experiments beside the tables; each has ``cells``, ``belongs``, ``TITLE``, ``WORDS`` and ``view``."""

OPENING = """# DiSparse's tables on units

`python -m benchmarks.disparse_tables` writes the blocks between the markers below; every row of every seed is
a line of JSON in `benchmarks/results/tables`. ΔT is the mean over tasks of
the relative change against the dense network of the same seed, in percent, higher is better; figures are mean
± sample standard deviation over seeds. All methods of a regime have the same structure, budget, surgery, data
order and training; only the decision differs. MACs and parameters are counted on the finished networks; a
budget counts as met from below within one percent of the dense MACs. Bold is the best mean of a column among
the pruned networks; where deviations overlap it says little.

NYU-v2 is the pack with 13 classes (the paper has 40); cards are reported on another camera's photographs.
There are readers for Cityscapes and Tiny-Taskonomy, but these were not run: the data was not at hand.
"""


def write(space: Workspace, out: Path) -> Path:
    """Writes the page and the plots into ``out``, from the rows of the present settings; the page's path."""
    scale, page = space.scale, out / NAME
    current, stale = space.rows()
    if stale:
        print(f"{stale} rows of other settings are left out; run their cells again", file=sys.stderr)
    rows = views.by_cell(current)
    for name, content in _blocks(space, rows, out):
        place(page, f"{scale.name} {name}".strip() if name != "ranks" else name, content, OPENING, WRITER)
    return page


def _blocks(space: Workspace, rows: Mapping[Cell, Row], out: Path) -> Iterator[tuple[str, str]]:
    """The name and content of each block."""
    scale = space.scale
    yield "", _tables(scale, rows, out)
    for name, module in EXTRAS.items():
        if any(module.belongs(cell) for cell in rows):
            tables = [
                (TITLES[setup.dataset], module.view(scale, setup.dataset, rows)) for setup in scale.setups
            ]
            yield name, sections(f"{module.TITLE} ({scale.name})", module.WORDS, tables)
    if scale.name in ("desk", "paper"):
        desk, paper = (replace(space, scale=SCALES[name]).rows()[0] for name in ("desk", "paper"))
        table = ranks.view(ranks.agreement(desk, paper), "desk", "paper")
        yield "ranks", f"## Do the two scales rank the methods alike?\n\n{table}"


def _tables(scale: Scale, rows: Mapping[Cell, Row], out: Path) -> str:
    """Plots, tables and costs of every data set."""
    parts = [f"## {scale.name.capitalize()} scale", _setting(scale)]
    regimes = _regimes(scale)
    for setup in scale.setups:
        name = f"pareto-{scale.name}-{setup.dataset}.png"
        if figures.pareto(out / name, scale, setup.dataset, regimes, rows):
            parts.append(f"![ΔT against MACs, {TITLES[setup.dataset]}]({name})")
        for regime, methods in regimes.items():
            parts.append(views.section(scale, setup.dataset, regime, methods, rows))
        parts.append(views.costs(setup.dataset, rows))
    return "\n\n".join(parts)


def _setting(scale: Scale) -> str:
    """How networks were trained, in words."""
    lines = []
    for setup in scale.setups:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in setup.weights) or "all 1"
        lines.append(
            f"- {TITLES[setup.dataset]}: {setup.backbone} {dict(setup.options) or ''} at "
            f"{setup.size[0]}×{setup.size[1]}, {setup.epochs} epochs of AdamW, one cycle to {setup.lr:g} "
            f"(dense, static, dynamic, and rewound networks alike); after pruning a trained network "
            f"{setup.finetune_epochs} epochs to {setup.finetune_lr:g}, which iterative methods split "
            f"between their stages. Loss weights: {weights}."
        )
    lines.append(
        "- † trains for all epochs again, more than the other rows of its regime have after pruning: "
        "lth from the initial weights, compensated-longer from the refit ones."
    )
    return "\n".join(lines)


def _regimes(scale: Scale) -> dict[str, dict[str, str]]:
    """Regime to method to the name shown, for the regimes that have methods."""
    names = scale.methods or tuple(METHODS)
    return {
        regime: chosen
        for regime in REGIMES
        if (chosen := {name: _shown(name) for name in names if METHODS[name].regime == regime})
    }


def _shown(method: str) -> str:
    chosen = METHODS[method]
    return chosen.name + (" †" if chosen.rewind or chosen.longer else "")
