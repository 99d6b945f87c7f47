"""Every timm family: export, structure, plan, surgery, ONNX Runtime and a training step, beside stock.

The smallest model of every timm module, or with ``--models`` any names and patterns, or with ``--draw`` some
drawn with a seed; each with three heads and as a classifier, in a process of its own with limits on its time
and memory. Finished rows are kept, so a run that was interrupted can be repeated and resumes where it was;
after a change of code use ``--again``, or ``--retry`` for models that were not sound. The verdict of the
first try is kept. Afterwards, or with ``--views`` only, page and summary are written from the rows that are
there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import options as common
from benchmarks.harness.files import PAGES, RESULTS, write_json, write_text
from benchmarks.harness.limits import Limits
from benchmarks.harness.runner import aloud
from benchmarks.harness.sweep import Workspace, work
from benchmarks.timm_sweep import views
from benchmarks.timm_sweep.cells import KINDS, Cell, Row
from benchmarks.timm_sweep.models import (
    CACHE,
    Selection,
    SelectionError,
    counted,
    drawn,
    modules,
    named,
    smallest,
    takes_any_size,
)

MEASURE = "benchmarks.timm_sweep.measure"

SELECTIONS = "selections.json"
"""In the folder of rows: the selections that were run so far, by title."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return common.status(lambda: _run(options), SelectionError)


def select(options: argparse.Namespace) -> Selection:
    """The models that the options ask for."""
    if options.models:
        return named(options.models)
    found = modules()
    if not options.cache.is_file():
        aloud("counting the parameters of every model of timm: five minutes, once")
    counts = counted((name for models in found.values() for name in models), options.cache)
    least = smallest(counts, found)
    return drawn(counts, least.models, options.draw, options.seed) if options.draw else least


def workspace(
    folder: Path, limits: Limits | None = None, *, stock: bool = True, graph: bool = True
) -> Workspace[Cell, Row]:
    """Where the cells are run; a model has one row of each kind, whatever the size of the images."""
    options = (*(() if stock else ("--no-stock",)), *(() if graph else ("--no-graph",)))
    return Workspace(folder, Row, Cell, MEASURE, limits or Limits(), options)


def write(space: Workspace[Cell, Row], out: Path) -> Path:
    """Writes the page into ``out``, and a summary beside the rows; the page's path."""
    rows, selections = space.rows(), remembered(space.folder)
    write_json(space.folder / "summary.json", views.as_json(selections, rows))
    page = out / "timm_sweep.md"
    write_text(page, views.document(selections, rows))
    return page


def remembered(folder: Path) -> list[Selection]:
    """All selections that were run into a folder of rows, in the order of their first run."""
    path = folder / SELECTIONS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [Selection(title, tuple(models)) for title, models in known.items()]


def _run(options: argparse.Namespace) -> Path:
    limits = Limits(options.timeout, options.memory, options.threads)
    space = workspace(options.rows, limits, stock=not options.no_stock, graph=not options.no_graph)
    if not options.views:
        selection = select(options)
        _remember(selection, options.rows)
        sizes = {name: options.image_size if takes_any_size(name) else None for name in selection.models}
        cells = [Cell(name, kind, sizes[name]) for name in selection.models for kind in options.kinds]
        work(cells, space, jobs=options.jobs, again=options.again, retry=options.retry)
    return write(space, options.out)


def _remember(selection: Selection, folder: Path) -> None:
    write_json(folder / SELECTIONS, {each.title: each.models for each in [*remembered(folder), selection]})


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("timm_sweep", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--models", nargs="+", metavar="NAME", help="names, or patterns such as 'resnet*'")
    which.add_argument(
        "--draw",
        type=common.count,
        metavar="N",
        help="N models of at most 60 M parameters, drawn with --seed",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the draw (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="(both)")
    parser.add_argument("--timeout", type=common.positive, default=600.0, help="seconds a cell (%(default)g)")
    parser.add_argument("--memory", type=common.positive, default=12.0, help="GB a cell (%(default)g)")
    parser.add_argument("--jobs", type=common.count, default=1, help="processes at once (%(default)s)")
    parser.add_argument("--threads", type=common.count, default=1, help="of each process (%(default)s)")
    parser.add_argument(
        "--image-size",
        type=common.count,
        metavar="N",
        help="side in pixels for models that take any (timm's)",
    )
    parser.add_argument("--no-stock", action="store_true", help="without stock Torch-Pruning: much faster")
    parser.add_argument("--no-graph", action="store_true", help="without pruning the exported graph")
    parser.add_argument("--again", action="store_true", help="also run what is finished")
    parser.add_argument("--retry", action="store_true", help="also run what is finished and not sound")
    parser.add_argument("--views", action="store_true", help="do not run anything, only write the page")
    parser.add_argument(
        "--rows", type=Path, default=RESULTS / "timm_sweep", help="folder of rows (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=PAGES, help="folder of the page (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="parameter counts (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
