"""DiSparse's tables on units: every method, in every regime, at 50, 70 and 90 % of the MACs removed.

``python -m benchmarks.disparse_tables --quick`` runs one seed of everything at 70 % in ten minutes;
without ``--quick`` the desk scale takes over an hour on two cores. Dense networks are trained once for each
seed and kept under ``benchmarks/.cache``. Finished rows are kept under ``benchmarks/results/tables``, so a
run that was interrupted can be repeated and resumes where it was. ``--only views`` writes tables and plots
from the rows that are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.baselines import METHODS
from benchmarks.harness import options as common
from benchmarks.harness.files import CACHE, PAGES, RESULTS, SCRATCH
from benchmarks.tables import page
from benchmarks.tables.problems import TITLES
from benchmarks.tables.runner import Workspace, table_cells, work
from benchmarks.tables.settings import SCALES, Scale

PARTS = ("tables", *page.EXTRAS, "views")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return common.status(lambda: _run(options), ValueError)


def _run(options: argparse.Namespace) -> Path:
    torch.set_num_threads(1)
    whole = _whole(options)
    scale = _chosen(whole, options)
    folder = options.rows or (SCRATCH if options.quick else RESULTS) / "tables"
    space = Workspace(scale, folder, options.cache, options.jobs, options.device, options.retry)
    if options.only in (None, "tables"):
        work(space, table_cells(scale))
    elif options.only in page.EXTRAS:
        module = page.EXTRAS[options.only]
        work(space, [cell for setup in scale.setups for cell in module.cells(scale, setup.dataset)])
    return page.write(replace(space, scale=whole), options.out or (SCRATCH if options.quick else PAGES))


def _whole(options: argparse.Namespace) -> Scale:
    """The scale of all tables; with other loss weights it has another name, and so rows of its own."""
    scale = SCALES["quick" if options.quick else options.scale]
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
    parser = common.parser("disparse_tables", __doc__)
    parser.add_argument("--scale", choices=SCALES, default="desk", help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="--scale quick, written to benchmarks/out")
    parser.add_argument("--only", choices=PARTS, help="one part (default: tables, then views of all)")
    parser.add_argument("--data", nargs="+", choices=sorted(TITLES), help="data sets (default: all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="REGIME/NAME", help="(all)")
    parser.add_argument("--removed", nargs="+", type=common.share, help="shares of the MACs (0.7 0.5 0.9)")
    parser.add_argument("--seeds", type=common.count, help="how many, from 0")
    parser.add_argument("--weights", choices=("equal", "published"), default="equal", help="of the losses")
    parser.add_argument(
        "--jobs", type=common.count, default=2, help="processes, one thread each (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument("--rows", type=Path, help="folder of rows (benchmarks/results/tables)")
    parser.add_argument("--out", type=Path, help="folder of page and plots (docs/results)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained dense networks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
