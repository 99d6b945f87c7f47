"""Networks from torchvision, segmentation-models-pytorch, Ultralytics and transformers.

Each runs in its own process. A row says what can be removed, whether the result is the masked twin, whether
it works like the dense network beyond the example, whether its MACs are as predicted, whether it is exported,
and whether the model is unchanged, object by object. Finished rows are kept, so an interrupted run resumes
where it stopped. ``--retry`` reruns what was not sound, ``--again`` everything. The verdict of the first try
is kept. Networks from libraries that are not installed fail in the stage ``build``. The page is written from
the existing rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.harness import options as common
from benchmarks.harness.files import PAGES, RESULTS, write_text
from benchmarks.harness.limits import Limits
from benchmarks.harness.machine import in_words
from benchmarks.harness.sweep import Workspace, work
from benchmarks.harness.views import NONE, markdown, percent
from benchmarks.zoo_sweep.cells import WIDE, Cell, Row
from benchmarks.zoo_sweep.networks import networks

MEASURE = "benchmarks.zoo_sweep.measure"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return common.status(lambda: _run(options))


def document(rows: Sequence[Row]) -> str:
    """Return the page."""
    built = [row for row in rows if "build" in row.seconds]
    machines = {in_words(row.machine) for row in built}
    read = [row for row in built if "structure" in row.seconds]
    exported = [row for row in built if row.dynamic]
    counts = [
        ("networks built", f"{len(built)}"),
        ("sound as module", _of(built, lambda row: row.sound)),
        ("sound as module on the first try", _of(built, lambda row: row.first_try == "sound")),
        ("sound as module, or as graph", _of(built, lambda row: row.sound or row.graph_twin is not None)),
        (f"at least {WIDE:.0%} of the parameters removable", _of(read, lambda row: row.wide)),
        ("no group refused", _of([row for row in built if row.left], lambda row: not row.refused)),
        ("train mode works as for the dense network", _of(
            [row for row in built if row.left],
            lambda row: any(each.startswith("train mode") for each in row.beyond))),
        ("exported to ONNX", _of([row for row in built if row.left], lambda row: bool(row.dynamic))),
        ("with a free batch", _of(exported, lambda row: "batch" in row.dynamic)),
        ("model unchanged, object by object", _of(built, lambda row: "untouched" in row.seconds)),
    ]  # fmt: skip
    share = statistics.median([row.prunable for row in read]) if read else None
    table = [
        (
            f"`{row.cell.name}`",
            f"{row.parameters:,}",
            percent(row.prunable) if "structure" in row.seconds else NONE,
            percent(row.left / row.parameters) if row.left else NONE,
            NONE if row.twin is None else f"{row.twin:.0e}",
            str(len(row.refused)) if row.left else NONE,
            ", ".join(row.beyond) or NONE,
            row.dynamic or NONE,
            row.verdict if row.sound else row.verdict.replace("|", "\\|"),
        )
        for row in rows
    ]
    return "\n\n".join(
        [
            "# Networks from other libraries",
            "`python -m benchmarks.zoo_sweep` (`make sweep-zoo`) writes this page from [one line of JSON per "
            "network](../../benchmarks/results/zoo_sweep/rows.jsonl). The networks are small configurations "
            "with random weights. Each is pruned to about half of every width, at random, with only the "
            "tasks' outputs kept whole, and verified.",
            f"Machine: {'; '.join(sorted(machines)) or NONE}.",
            markdown(("", "count"), counts),
            f"Median removable share of the parameters: {percent(share)}.",
            markdown(
                ("network", "parameters", "removable", "left", "twin", "refused", "works like dense with",
                "ONNX", "verdict"), table,
            ),
        ]
    ) + "\n"  # fmt: skip


def _of(rows: Sequence[Row], holds: Callable[[Row], bool]) -> str:
    return f"{sum(map(holds, rows))} of {len(rows)}"


def _chosen(patterns: Iterable[str]) -> list[Cell]:
    patterns = list(patterns)
    names = networks()
    return [Cell(name) for name in names if not patterns or any(fnmatchcase(name, each) for each in patterns)]


def _run(options: argparse.Namespace) -> Path:
    limits = Limits(options.timeout, options.memory, 1)
    space = Workspace(options.rows, Row, Cell, MEASURE, limits, ("--no-onnx",) if options.no_onnx else ())
    if not options.views:
        cells = _chosen(options.networks)
        work(cells, space, jobs=options.jobs, again=options.again, retry=options.retry)
    page: Path = options.out / "zoo_sweep.md"
    write_text(page, document(space.rows()))
    return page


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("zoo_sweep", __doc__)
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="patterns such as 'smp/*'")
    parser.add_argument("--timeout", type=common.positive, default=300.0, help="seconds a cell (%(default)g)")
    parser.add_argument("--memory", type=common.positive, default=8.0, help="GB a cell (%(default)g)")
    parser.add_argument("--jobs", type=common.count, default=1, help="processes at once (%(default)s)")
    parser.add_argument("--no-onnx", action="store_true", help="skip the exports")
    parser.add_argument("--again", action="store_true", help="also rerun finished cells")
    parser.add_argument("--retry", action="store_true", help="also rerun finished cells that are not sound")
    parser.add_argument("--views", action="store_true", help="run nothing, only write the page")
    parser.add_argument(
        "--rows", type=Path, default=RESULTS / "zoo_sweep", help="folder of rows (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=PAGES, help="folder of the page (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
