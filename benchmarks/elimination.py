"""Which units of a layer are removed, and from how many images: the deviation of trained networks.

``python -m benchmarks.elimination`` prunes the six networks of :mod:`benchmarks.no_training` with units
ordered by the criterion, by elimination, and with more images. ``--diagnose cards/mobilenet`` instead
changes one setting at a time for one network. Both print a table and write JSON. Needs the data packs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from benchmarks.no_training.networks import NETWORKS, calibration

SHARES = (0.65, 0.3)
NEW, LAST = 256, 1024
"""How many new images, and after how many of the training images they come."""

CRITERION = ds.Compensated(ds.criteria.Taylor())


@dataclass(frozen=True)
class Setting:
    """What is different: how many images are read, and options of ``prune``."""

    images: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)


ORDERS: Mapping[str, Setting] = {
    "by the criterion": Setting(options={"method": CRITERION}),
    "by elimination": Setting(),
    "by elimination, 256 images": Setting(256),
}

_CHANGES: Mapping[str, Setting] = {
    "nothing": Setting(),
    "no refit": Setting(options={"refit": None}),
    "only the statistics of batch norms": Setting(options={"refit": ds.refits.BatchNormStatistics()}),
    "no shifted copies": Setting(options={"refit": ds.refits.LeastSquares(shifts=0)}),
    "8 shifted copies": Setting(options={"refit": ds.refits.LeastSquares(shifts=8)}),
    "256 images": Setting(256),
    "1,024 images, no shifted copies": Setting(1024, {"refit": ds.refits.LeastSquares(shifts=0)}),
}

DIAGNOSIS: Mapping[str, Setting] = {
    **{
        f"criterion: {name}": replace(each, options={**each.options, "method": CRITERION})
        for name, each in _CHANGES.items()
    },
    **{f"elimination: {name}": each for name, each in _CHANGES.items()},
    "elimination: four rounds": Setting(options={"method": ds.Compensated(rounds=4)}),
    "elimination: damage judged on 32 images": Setting(options={"method": ds.Compensated(judged=32)}),
}


def measured(bench: Bench, share: float, setting: Setting) -> dict[str, float]:
    """Mean deviations on the images that were read, on new ones, and on the held-out images of the tables."""
    images = calibration(bench.network, setting.images, bench.seed)
    known = min(LAST + NEW, len(bench.problem.train))
    sets = {
        "read": images,
        "new": calibration(bench.network, known, bench.seed)[-NEW:],
        "held out": bench.problem.check.tensors["image"],
    }
    given = {"samples": setting.images, "budget": ds.Budget(macs=share, round_to=1), "seed": bench.seed}
    pruned = ds.prune(bench.model, images, bench.unlabeled, verify=False, **given, **setting.options).model
    found = {name: deviation(bench.model, pruned, each, bench.unlabeled) for name, each in sets.items()}
    return {name: sum(each.values()) / len(each) for name, each in found.items()}


def orders(cache: Path, say: Callable[[str], None]) -> tuple[Table, list[dict[str, Any]]]:
    """Every network at both shares, in three ways."""
    table, rows = Table(title="Mean deviation on held-out images"), []
    for column in ("network", *(f"{name}, {share:.0%}" for share in SHARES for name in ORDERS)):
        table.add_column(column)
    for network in NETWORKS:
        bench, cells = Bench(network, 0, cache=cache), []
        for share in SHARES:
            for name, setting in ORDERS.items():
                found = measured(bench, share, setting)
                rows.append({"network": network.name, "share": share, "order": name, **found})
                cells.append(f"{found['held out']:.4f}")
                say(f"{network.name} {share:.0%} {name}: {found['held out']:.4f}")
        table.add_row(network.name, *cells)
    return table, rows


def diagnosis(cache: Path, name: str, say: Callable[[str], None]) -> tuple[Table, list[dict[str, Any]]]:
    """One network at the first share, with one setting changed at a time."""
    bench = Bench({each.name: each for each in NETWORKS}[name], 0, cache=cache)
    table, rows = Table(title=f"{name} at {SHARES[0]:.0%} of the MACs: mean deviation"), []
    for column in ("what is different", "images read", "new images", "held-out images"):
        table.add_column(column)
    for label, setting in DIAGNOSIS.items():
        found = measured(bench, SHARES[0], setting)
        rows.append({"network": name, "share": SHARES[0], "different": label, **found})
        table.add_row(label, *(f"{value:.3f}" for value in found.values()))
        say(f"{label}: {found}")
    return table, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 when it has written its JSON."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    if options.diagnose:
        table, rows = diagnosis(options.cache, options.diagnose, console.print)
    else:
        table, rows = orders(options.cache, console.print)
    console.print(table)
    facts = machine()
    console.print(in_words(facts))
    out = options.out or RESULTS / ("elimination_diagnosis.json" if options.diagnose else "elimination.json")
    write_json(out, {"machine": facts, "rows": rows})
    console.print(f"written to {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("elimination", __doc__)
    names = [network.name for network in NETWORKS]
    parser.add_argument("--diagnose", choices=names, help="change one setting at a time for this network")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained dense networks")
    parser.add_argument("--out", type=Path, help="JSON (in benchmarks/results)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
