"""Milliseconds: a latency budget beside MACs budgets and stock Torch-Pruning, in ONNX Runtime.

Ten networks with three heads and random weights; one and two threads, batches of 1 and 8. Each cell runs in
a process of its own, one at a time, since cells that share a machine slow each other down. Finished rows are
kept, so that a run that was interrupted resumes where it was; what matters most is run first. After a change
of code use ``--again``, or ``--retry`` for cells that were not finished. The page is written from the rows
that are there, with ``--views`` only that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import options as common
from benchmarks.harness.files import PAGES, RESULTS, write_json, write_text
from benchmarks.harness.limits import Limits
from benchmarks.harness.sweep import Workspace, work
from benchmarks.latency import figures, views
from benchmarks.latency.cells import Cell, Row
from benchmarks.latency.networks import NETWORKS
from benchmarks.latency.variants import METHODS

MEASURE = "benchmarks.latency.measure"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return common.status(lambda: _run(options))


def cells(options: argparse.Namespace) -> list[Cell]:
    """What the options ask for: all networks with one thread and one image first."""
    settings = [(threads, batch) for threads in sorted(options.threads) for batch in sorted(options.batch)]
    settings.sort(key=lambda pair: pair[0] * pair[1])
    return [
        Cell(
            model, threads, batch, options.images, options.method, options.share, options.plans, options.side
        )
        for threads, batch in settings
        for model in options.models
    ]


def write(space: Workspace[Cell, Row], out: Path) -> Path:
    """Writes the page and its plots into ``out``, and a summary beside the rows; the page's path."""
    rows = space.rows()
    write_json(space.folder / "summary.json", views.as_json(rows))
    page = out / "latency.md"
    plots = [words for name, draw, words in figures.PLOTS if draw(out / name, rows)]
    write_text(page, views.document(rows, plots))
    return page


def _run(options: argparse.Namespace) -> Path:
    limits = Limits(options.timeout, options.memory, max(options.threads))
    space = Workspace(options.rows, Row, Cell, MEASURE, limits)
    if not options.views:
        work(cells(options), space, again=options.again, retry=options.retry)
    return write(space, options.out)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("latency", __doc__)
    parser.add_argument(
        "--models", nargs="+", default=list(NETWORKS), metavar="NAME", help="(the ten), or names in timm"
    )
    parser.add_argument("--threads", nargs="+", type=common.count, default=[1, 2], help="(1 2)")
    parser.add_argument("--batch", nargs="+", type=common.count, default=[1, 8], help="(1 8)")
    parser.add_argument(
        "--images", type=common.count, default=16, help="that networks are pruned on (%(default)s)"
    )
    parser.add_argument("--method", choices=METHODS, default="disparse", help="that scores (%(default)s)")
    parser.add_argument(
        "--share", type=common.share, default=0.5, help="of the dense time or MACs (%(default)s)"
    )
    parser.add_argument(
        "--plans", type=common.count, default=20, help="random plans of a network (%(default)s)"
    )
    parser.add_argument("--side", type=common.count, metavar="N", help="of the images in pixels (224, 112)")
    parser.add_argument(
        "--timeout", type=common.positive, default=1200.0, help="seconds a cell (%(default)g)"
    )
    parser.add_argument("--memory", type=common.positive, default=12.0, help="GB a cell (%(default)g)")
    parser.add_argument("--again", action="store_true", help="also run what is finished")
    parser.add_argument("--retry", action="store_true", help="also run what is finished and not sound")
    parser.add_argument("--views", action="store_true", help="do not run anything, only write the page")
    parser.add_argument("--rows", type=Path, default=RESULTS / "latency", help="folder of rows (%(default)s)")
    parser.add_argument("--out", type=Path, default=PAGES, help="folder of the page (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
