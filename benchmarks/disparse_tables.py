"""DiSparse's tables on units: every method, in every regime, at 50, 70 and 90 % of the MACs removed.

``python -m benchmarks.disparse_tables --quick`` runs one seed of everything at 70 % in ten minutes,
without ``--quick`` all of the desk scale (over an hour on two cores). Dense networks are trained once a
seed and kept under ``benchmarks/.cache``. Every network's row is one JSON file; whoever stops the run and
calls it again goes on where it was. ``--only views`` draws tables and plots from the rows that are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.baselines import METHODS, VARIANTS
from benchmarks.data import DataError
from benchmarks.options import count
from benchmarks.rows import RowError
from benchmarks.tables import branches, figures, loudness, ranks, variants, views
from benchmarks.tables.cells import Cell, Row
from benchmarks.tables.problems import TITLES
from benchmarks.tables.runner import Plant, table_cells, work
from benchmarks.tables.settings import REGIMES, SCALES, Scale

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results"
EXTRAS = {"loss-scale": loudness, "branch": branches, "variants": variants}
PARTS = ("tables", *EXTRAS, "views")

OPENING = """# DiSparse's tables on units

`python -m benchmarks.disparse_tables` writes what stands between the markers below; every row of every
seed is a JSON file in [tables](tables). ΔT is the mean over tasks of the relative change against the dense
network of the same seed, in percent, up is good; figures are mean ± sample standard deviation over seeds.
All methods of a regime have the same structure, budget, surgery, data order and training; only the decision
differs. MACs and parameters are counted on the finished networks; a budget counts as met from below within
one percent of the dense MACs. Bold is the best mean of a column among the pruned networks; where deviations
overlap it says little.

NYU-v2 is the pack with 13 classes (the paper has 40); cards are reported on another camera's photographs.
Cityscapes and Tiny-Taskonomy have readers, but were not run: the data was not at hand.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    whole = _whole(options)
    scale = _chosen(whole, options)
    out: Path = options.out or (HERE.parent / "out" if whole.name.startswith("quick") else RESULTS)
    plant = Plant(
        scale, out / "tables" / scale.name, options.cache, options.jobs, options.device, options.retry
    )
    try:
        if options.only in (None, "tables"):
            work(plant, table_cells(scale))
        for name, module in EXTRAS.items():
            if options.only == name:
                work(plant, [cell for each in scale.setups for cell in module.cells(scale, each.dataset)])
        written = write_views(replace(plant, scale=whole), out)
    except (DataError, RowError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; call it again to go on", file=sys.stderr)
        return 130
    print(f"written to {written}")
    return 0


def write_views(plant: Plant, out: Path) -> Path:
    """All blocks of the document, and the plots, from the rows of the settings as they are now."""
    scale, document = plant.scale, out / "disparse_tables.md"
    current, stale = plant.rows()
    if stale:
        print(f"{stale} rows are of other settings and left out; run them again", file=sys.stderr)
    found = views.by_cell(current)
    parts = [f"## {scale.name.capitalize()} scale", _setting(scale)]
    for setup in scale.setups:
        regimes = _regimes(scale)
        name = f"pareto-{scale.name}-{setup.dataset}.png"
        if figures.pareto(out / name, scale, setup.dataset, regimes, found):
            parts.append(f"![ΔT against MACs, {TITLES[setup.dataset]}]({name})")
        for regime, methods in regimes.items():
            parts.append(views.section(scale, setup.dataset, regime, methods, found))
        parts.append(views.costs(setup.dataset, found))
    views.place(document, scale.name, "\n\n".join(parts), OPENING)
    if any(cell.loud for cell in found):
        views.place(document, f"{scale.name} loss-scale", _loud_section(scale, found), OPENING)
    if any(cell.trunk for cell in found):
        views.place(document, f"{scale.name} branch", _branch_section(scale, found), OPENING)
    if any(cell.method in VARIANTS for cell in found):
        views.place(document, f"{scale.name} variants", _variants_section(scale, found), OPENING)
    if scale.name in ("desk", "paper"):
        views.place(document, "ranks", _ranks_section(plant, out), OPENING)
    return document


def _setting(scale: Scale) -> str:
    """How networks were trained, in words."""
    lines = []
    for setup in scale.setups:
        weights = dict(setup.weights)
        scored = ", ".join(f"{name} {weight:g}" for name, weight in weights.items()) or "all 1"
        lines.append(
            f"- {TITLES[setup.dataset]}: {setup.backbone} {dict(setup.options) or ''} at "
            f"{setup.size[0]}×{setup.size[1]}, {setup.epochs} epochs of AdamW, one cycle to {setup.lr:g} "
            f"(dense, static, dynamic, and rewound networks alike); after pruning a trained network "
            f"{setup.finetune_epochs} epochs to {setup.finetune_lr:g}, which iterative methods split "
            f"between their stages. Loss weights: {scored}."
        )
    lines.append(
        "- † goes back to the initial weights and trains for all epochs again: more training than the other "
        "rows of its regime have after pruning."
    )
    return "\n".join(lines)


def _regimes(scale: Scale) -> dict[str, dict[str, str]]:
    names = scale.methods or tuple(METHODS)
    return {
        regime: chosen
        for regime in REGIMES
        if (chosen := {name: _label(name) for name in names if METHODS[name].regime == regime})
    }


def _label(method: str) -> str:
    return METHODS[method].name + (" †" if METHODS[method].rewind else "")


def _loud_section(scale: Scale, found: Mapping[Cell, Row]) -> str:
    parts = [
        f"## Loss scale ({scale.name})",
        f"One task's loss is made 20 times louder or quieter while saliency is measured; the dense network, "
        f"the data and the fine-tuning (with the losses as they were) are the same. −{loudness.REMOVED:.0%} "
        "MACs. *Same plan*: networks that lose exactly what they lose with balanced losses.",
    ]
    for setup in scale.setups:
        parts += [f"### {TITLES[setup.dataset]}", loudness.view(scale, setup.dataset, found)]
    return "\n\n".join(parts)


def _branch_section(scale: Scale, found: Mapping[Cell, Row]) -> str:
    parts = [
        f"## From analysis to architecture ({scale.name})",
        "Every task gets a trunk of its own from the watershed on, or from the start, and the votes prune "
        "all copies together to the MACs that the pruned shared network has. ΔT in percent against the "
        "dense shared network; the watershed is each seed's own, at unit level, where every task gives up "
        f"{branches.RATIO:.0%}.",
    ]
    for setup in scale.setups:
        parts += [f"### {TITLES[setup.dataset]}", branches.view(scale, setup.dataset, found)]
    return "\n\n".join(parts)


def _variants_section(scale: Scale, found: Mapping[Cell, Row]) -> str:
    parts = [
        f"## What else was tried ({scale.name})",
        f"DiSparse's own rows with other rankings, arbiters and criteria, −{variants.REMOVED:.0%} MACs; "
        "those of the tables are unanimous and per cost, by Fisher on trained networks and by SNIP at "
        "initialisation.",
    ]
    for setup in scale.setups:
        parts += [f"### {TITLES[setup.dataset]}", variants.view(scale, setup.dataset, found)]
    return "\n\n".join(parts)


def _ranks_section(plant: Plant, out: Path) -> str:
    desk, paper = (
        replace(plant, scale=SCALES[name], folder=out / "tables" / name).rows()[0]
        for name in ("desk", "paper")
    )
    table = ranks.view(ranks.agreement(desk, paper), "desk", "paper")
    return f"## Do the two scales rank the methods alike?\n\n{table}"


def _whole(options: argparse.Namespace) -> Scale:
    """The scale of all tables; other loss weights have a name, and so rows, of their own."""
    scale: Scale = SCALES["quick" if options.quick else options.scale]
    if options.weights == "equal":
        return scale
    setups = tuple(setup.published() for setup in scale.setups)
    return replace(scale, name=f"{scale.name}-published", setups=setups)


def _chosen(scale: Scale, options: argparse.Namespace) -> Scale:
    """The part of ``scale`` that is to be run."""
    held = {setup.dataset for setup in scale.setups}
    if options.data and not held & set(options.data):
        raise SystemExit(f"the scale {scale.name} has the data {', '.join(sorted(held))} only")
    return replace(
        scale,
        setups=tuple(each for each in scale.setups if each.dataset in (options.data or held)),
        seeds=options.seeds or scale.seeds,
        removed=tuple(options.removed or scale.removed),
        methods=tuple(options.methods or scale.methods),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disparse_tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", choices=SCALES, default="desk", help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="--scale quick, written to out/")
    parser.add_argument("--only", choices=PARTS, help="one part (default: tables, then views of all)")
    parser.add_argument("--data", nargs="+", choices=sorted(TITLES), help="data sets (default: all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="REGIME/NAME", help="(all)")
    parser.add_argument("--removed", nargs="+", type=_share, help="shares of the MACs (0.7 0.5 0.9)")
    parser.add_argument("--seeds", type=count, help="how many, from 0")
    parser.add_argument("--weights", choices=("equal", "published"), default="equal", help="of the losses")
    parser.add_argument("--jobs", type=count, default=2, help="processes of one thread each (%(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--retry", action="store_true", help="run cells again that failed")
    parser.add_argument("--out", type=Path, help="folder of results (docs/results; out for --quick)")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="trained dense networks")
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of the MACs between 0 and 1, such as 0.7")
    return share


if __name__ == "__main__":
    sys.exit(main())
