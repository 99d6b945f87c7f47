"""Whole layers given up, against narrower ones, at the same MACs: the deviation of trained networks.

``python -m benchmarks.blocks`` leaves a single unit of each group of the networks of
:mod:`benchmarks.no_training` in turn, and everything else as it is. Of a residual block whose inside is such
a group, little more than a constant is left. The groups that lose least for the MACs that they free are then
compared with what ``prune`` decides at the same MACs, and given up before it decides on the rest. Prints
tables and writes JSON. Needs the data packs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import disparse_structured as ds
from benchmarks.harness import options as common
from benchmarks.harness.files import CACHE, RESULTS, write_json
from benchmarks.harness.machine import in_words, machine
from benchmarks.no_training.bench import Bench
from benchmarks.no_training.deviation import deviation
from benchmarks.no_training.networks import NETWORKS

SHARE = 0.65
CLOSELY = 3
"""How many groups of a network are compared with narrowing."""

Shares = Mapping[str, float | tuple[float, float]]


def pruned(bench: Bench, macs: float, shares: Shares) -> tuple[float, float]:
    """The share of the MACs that is left, and the mean deviation on the held-out images of the tables."""
    budget = ds.Budget(macs=macs, round_to=1, shares=shares)
    result = ds.prune(
        bench.model, bench.images, bench.unlabeled, budget=budget, samples=bench.count, verify=False
    )
    found = deviation(bench.model, result.model, bench.problem.check.tensors["image"], bench.unlabeled)
    return result.report.costs["macs"].ratio, sum(found.values()) / len(found)


def compared(bench: Bench) -> list[dict[str, Any]]:
    """A row for each group: its deviation alone, and for the best ones the two comparisons."""
    rows: list[dict[str, Any]] = []
    for group in bench.structure.groups:
        without = {group.name: ((group.units - 1) / group.units,) * 2}
        macs, alone = pruned(bench, 0.9999, {"*": 0.0, **without})
        rows.append({"group": group.name, "without": without, "macs": macs, "alone": alone})
    rows.sort(key=lambda row: row["alone"] ** 2 / (1 - row["macs"]))
    plain = pruned(bench, SHARE, {})[1]
    for row in rows[:CLOSELY]:
        row["narrowed"] = pruned(bench, row["macs"], {})[1]
        row["then"] = pruned(bench, SHARE, row["without"])[1]
        row["plain"] = plain
    return [{key: row[key] for key in row if key != "without"} for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 when it has written its JSON."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    console, facts, found = Console(), machine(), []
    for network in NETWORKS:
        if network.name in options.networks:
            rows = compared(Bench(network, 0, cache=options.cache))
            found += [{"network": network.name, **row} for row in rows]
            console.print(_table(network.name, rows[:CLOSELY]))
    console.print(in_words(facts))
    write_json(options.out, {"machine": facts, "rows": found})
    console.print(f"written to {options.out}")
    return 0


def _table(network: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{network}: mean deviation on held-out images")
    columns = (
        "MACs left",
        "given up alone",
        "narrowing everywhere",
        f"then to {SHARE:.0%}",
        "narrowing only",
    )
    for column in ("group", *columns):
        table.add_column(column)
    for row in rows:
        figures = (f"{row[key]:.4f}" for key in ("alone", "narrowed", "then", "plain"))
        table.add_row(row["group"], f"{row['macs']:.1%}", *figures)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("blocks", __doc__)
    names = [network.name for network in NETWORKS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names, help="(all)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained dense networks")
    parser.add_argument("--out", type=Path, default=RESULTS / "blocks.json", help="JSON (%(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
