"""Pruning without training: stock Torch-Pruning, folding, GRAIL and ours on six trained networks.

Everything takes two hours on two cores (``--jobs 2``), not counting the training of the networks; ``--quick``
takes four minutes: two networks, one seed, one share of the MACs, few methods, written to benchmarks/out.
Finished rows are kept, so a run that was interrupted can be repeated and resumes where it was. Rows of other
settings are left out and their cells run again; after a change of code that no setting records, use
``--again``. ``--only views`` writes tables and plots from the rows that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import options as common
from benchmarks.harness.files import CACHE, PAGES, RESULTS, SCRATCH, write_json, write_text
from benchmarks.no_training import call, figures, views
from benchmarks.no_training.bench import INPUTS
from benchmarks.no_training.cells import BY_NAME, Cell, Workspace
from benchmarks.no_training.goals import EPOCHS, OURS
from benchmarks.no_training.methods import FEW, FRACTIONS, METHODS
from benchmarks.no_training.results import Results, delta_t, mean_deviation
from benchmarks.no_training.runner import work

PARTS = ("tables", "ablation", "inputs", "finetune", "call", "views")
ONE_SEED = ("ablation", "inputs")
"""Parts that run every network, but only with its first seed, unless a number of seeds is given."""

QUICK_NETWORKS = ("nyuv2/resnet", "cards/resnet")
QUICK_METHODS = ("magnitude-uniform", "hessian-global+bn", "grail-magnitude+bn", "folding+bn", OURS)
QUICK_MACS = (0.5,)

_TRAINED_STOCK = "hessian-global+bn"
"""The stock variant that is trained after pruning, where no rows say yet which one is best."""


class NothingToShow(Exception):
    """There is no current row to write a page from."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return common.status(lambda: _run(options), NothingToShow)


def cells(part: str, space: Workspace, options: argparse.Namespace) -> list[Cell]:
    """The cells of one part, network by network; those of the network of one seed are together."""
    names = options.methods or (QUICK_METHODS if options.quick else list(METHODS))
    shares = options.macs or (QUICK_MACS if options.quick else FRACTIONS)
    default = 1 if options.quick or part in ONE_SEED else 3
    found = []
    for seed in range(options.seeds or default):
        for network in options.networks or (QUICK_NETWORKS if options.quick else list(BY_NAME)):
            if part in ("tables", "ablation"):
                found += [
                    Cell(network, method.name, macs, seed)
                    for macs in shares
                    for method in (METHODS[name] for name in names)
                    if (method.family == "ablation") == (part == "ablation") and macs in method.fractions
                ]
            elif part == "inputs":
                found += [
                    Cell(network, OURS, macs, seed, inputs=count)
                    for count in views.COUNTS
                    if count != INPUTS
                    for macs in options.macs or FEW
                ]
            elif part == "finetune":
                found += [Cell(network, name, 0.3, seed, epochs=EPOCHS) for name in _trained(network, space)]
    return found


def write(space: Workspace, out: Path) -> Path:
    """Writes page and plots into ``out``, and a summary beside the rows; the page's path.

    Raises:
        NothingToShow: there is no current row.
    """
    rows = space.rows()
    if not rows:
        raise NothingToShow(
            f"{space.shelf.path} has no row of the present settings, so there is nothing to write. Run the "
            "benchmark without --only views, or name another folder with --rows."
        )
    results = Results(rows)
    plots = []
    for name, figure, label, most, floor in (
        ("no_training-deviation.png", mean_deviation, "mean deviation from dense", False, None),
        ("no_training-delta.png", delta_t, "ΔT, %", True, -40.0),
    ):
        if figures.pareto(out / name, results, figure, label, most=most, floor=floor):
            plots.append(name)
    spent = json.loads(space.timed.read_text(encoding="utf-8")) if space.timed.is_file() else {}
    write_json(space.folder / "summary.json", views.as_json(results, spent))
    page = out / "no_training.md"
    write_text(page, views.document(results, plots, spent))
    return page


def _run(options: argparse.Namespace) -> Path:
    torch.set_num_threads(options.threads)
    place = SCRATCH if options.quick else RESULTS
    space = Workspace(options.rows or place / "no_training", options.cache)
    for part in PARTS[:-1]:
        if options.only in (None, part) and not (options.quick and part != "tables"):
            _run_part(part, space, options)
    return write(space, options.out or (SCRATCH if options.quick else PAGES))


def _run_part(part: str, space: Workspace, options: argparse.Namespace) -> None:
    if part != "call":
        work(cells(part, space, options), space, options.jobs, options.again)
    elif options.again or not space.timed.is_file():
        torch.set_num_threads(2)
        spent = call.seconds(call.network(), call.images())
        torch.set_num_threads(options.threads)
        write_json(space.timed, spent)
        print("\n".join(f"{stage:>24}: {value:6.1f} s" for stage, value in spent.items()))


def _trained(network: str, space: Workspace) -> tuple[str, str]:
    """Ours, and the stock variant that is best there without training."""
    best = Results(space.rows()).best(delta_t, network, ("stock",), 0.3, most=True)
    return OURS, best or _TRAINED_STOCK


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("no_training", __doc__)
    parser.add_argument("--quick", action="store_true", help="a first look, written to benchmarks/out")
    parser.add_argument("--only", choices=PARTS, help="one part (default: all, then views)")
    parser.add_argument("--networks", nargs="+", choices=BY_NAME, help="(all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="(all)")
    parser.add_argument("--macs", nargs="+", type=float, choices=FRACTIONS, help="shares to keep (all)")
    parser.add_argument("--seeds", type=common.count, help="how many, from 0 (3; for ablation and inputs 1)")
    parser.add_argument(
        "--jobs", type=common.count, default=1, help="processes, one thread each (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=common.count, default=1, help="of torch, with one job (%(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="also run what is finished")
    parser.add_argument("--rows", type=Path, help="folder of rows (benchmarks/results/no_training)")
    parser.add_argument("--out", type=Path, help="folder of page and plots (docs/results)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained networks (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
