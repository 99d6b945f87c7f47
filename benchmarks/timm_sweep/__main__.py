"""Every timm family: export, structure, plan, surgery, ONNX Runtime and a training step, beside stock.

The smallest model of every timm module, or with ``--models`` any names and patterns, or with ``--draw`` some
drawn by seed; each with three heads and as a classifier, in a process of its own with limits on its time and
memory. What is finished stays: whoever stops the run and calls it again goes on where it was; after a change
of code use ``--again``, or ``--retry`` for what was not sound. The verdict of the first try is kept. Then, or
with ``--views`` only, page and JSON are written from the rows that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import count
from benchmarks.rows import RowError
from benchmarks.timm_sweep import views
from benchmarks.timm_sweep.cells import KINDS, Cell, Shelf
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
from benchmarks.timm_sweep.runner import Limits, aloud, work

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE.parent / "docs" / "results"
ROWS = HERE / "out" / "timm_sweep"
SELECTIONS = "selections.json"
"""In the folder of rows: what was asked for so far, by title."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    shelf = Shelf(options.rows)
    limits = Limits(options.timeout, options.memory, options.threads, stock=not options.no_stock)
    try:
        if not options.views:
            selection = select(options)
            _remember(selection, options.rows)
            sizes = {name: options.image_size if takes_any_size(name) else None for name in selection.models}
            cells = [Cell(name, kind, sizes[name]) for name in selection.models for kind in options.kinds]
            work(cells, shelf, limits, jobs=options.jobs, again=options.again, retry=options.retry)
        written = write(shelf, options.out)
    except (SelectionError, RowError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; call it again to go on", file=sys.stderr)
        return 130
    aloud(f"written to {written}")
    return 0


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


def write(shelf: Shelf, out: Path) -> Path:
    """Writes page and JSON from the rows that are there; where the page is."""
    rows, selections = list(shelf.rows()), remembered(shelf.folder)
    page = out / "timm_sweep.md"
    out.mkdir(parents=True, exist_ok=True)
    page.write_text(views.document(selections, rows), encoding="utf-8")
    text = json.dumps(views.as_json(selections, rows), indent=1, ensure_ascii=False)
    page.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return page


def remembered(folder: Path) -> list[Selection]:
    """All selections that were run into a folder of rows, in the order of their first run."""
    path = folder / SELECTIONS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [Selection(title, tuple(models)) for title, models in known.items()]


def _remember(selection: Selection, folder: Path) -> None:
    known = {each.title: each.models for each in [*remembered(folder), selection]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SELECTIONS).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timm_sweep", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--models", nargs="+", metavar="NAME", help="names, or patterns such as 'resnet*'")
    which.add_argument("--draw", type=count, metavar="N", help="models of at most 60 M parameters, by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="(both)")
    parser.add_argument("--timeout", type=_positive, default=600.0, help="seconds a cell (%(default)g)")
    parser.add_argument("--memory", type=_positive, default=12.0, help="GB a cell (%(default)g)")
    parser.add_argument("--jobs", type=count, default=1, help="processes at once (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="of each process (%(default)s)")
    parser.add_argument(
        "--image-size", type=count, metavar="N", help="a side in pixels for models that take any (timm's own)"
    )
    parser.add_argument("--no-stock", action="store_true", help="without stock Torch-Pruning: much faster")
    parser.add_argument("--again", action="store_true", help="run also what is finished")
    parser.add_argument("--retry", action="store_true", help="run also what is finished and not sound")
    parser.add_argument("--views", action="store_true", help="run nothing, only write page and JSON")
    parser.add_argument("--rows", type=Path, default=ROWS, help="folder of rows (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of page and JSON (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="parameter counts (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
