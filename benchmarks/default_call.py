"""How long the default call takes, in passes of the dense network over the same inputs.

``python -m benchmarks.default_call`` prunes each network to half of its MACs from 64 images and, in turn,
runs the dense network on them, all in one process. It compares CPU times, prints a table and writes JSON.
Networks have three heads and random weights. The second variant is what the default was before: five widths
of a group on 16 examples.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import disparse_structured as ds
from benchmarks.harness import options as common
from benchmarks.harness.files import SCRATCH, write_json
from benchmarks.harness.machine import in_words, machine
from benchmarks.harness.measure import paired_ratio
from disparse_structured.adapters.timm import LinearHead, multitask

NETWORKS = ("resnet18", "resnet50", "mobilenetv2_100", "convnext_tiny")
IMAGES, CHUNK, SIDE, MACS = 64, 16, 64, 0.5

METHODS: Mapping[str, ds.Compensated] = {
    "default": ds.Compensated(),
    "five widths, 16 examples": ds.Compensated(left=(0.7, 0.45, 0.25, 0.12, 0.05), judged=16),
}


def network(name: str, side: int) -> nn.Module:
    """A timm backbone with three classifications, in eval mode."""
    heads = {"kind": LinearHead(10), "colour": LinearHead(5), "shape": LinearHead(3)}
    return multitask(name, heads, image_size=side).eval()


def passes(model: nn.Module, images: Tensor, rounds: int) -> dict[str, float]:
    """By method, the median over the rounds of the time of a call in dense passes over ``images``."""
    dense: list[float] = []
    spent: dict[str, list[float]] = {name: [] for name in METHODS}
    _dense(model, images)
    for _ in range(rounds):
        dense.append(statistics.median(_spent(lambda: _dense(model, images)) for _ in range(3)))
        for name, method in METHODS.items():
            spent[name].append(
                _spent(lambda method=method: ds.prune(model, images, macs=MACS, method=method))
            )
    return {name: paired_ratio(spent[name], dense) for name in METHODS}


def _spent(work: Callable[[], object]) -> float:
    """CPU seconds of this process, to which other work on the machine adds little."""
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.no_grad()
def _dense(model: nn.Module, images: Tensor) -> None:
    for chunk in images.split(CHUNK):
        model(chunk)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 when it has written its JSON."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    images = torch.randn(IMAGES, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[str, float]] = {}
    table = Table(title=f"Calls in dense passes over {IMAGES} images of {options.size} px")
    for column in ("network", *METHODS):
        table.add_column(column)
    for name in options.networks:
        torch.manual_seed(0)
        found[name] = passes(network(name, options.size), images, options.rounds)
        table.add_row(name, *(f"{value:.0f}" for value in found[name].values()))
    console = Console()
    console.print(table)
    share = statistics.mean(each["default"] / each[list(METHODS)[1]] for each in found.values())
    console.print(f"the default takes {share:.2f} x the time of the other, on average")
    facts = machine()
    console.print(in_words(facts))
    settings = {"images": IMAGES, "size": options.size, "macs": MACS, "rounds": options.rounds}
    write_json(options.out, {"machine": facts, "settings": settings, "passes": found})
    console.print(f"written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("default_call", __doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of timm (%(default)s)")
    parser.add_argument("--size", type=common.count, default=SIDE, help="side in pixels (%(default)s)")
    parser.add_argument("--rounds", type=common.count, default=1, help="(%(default)s)")
    parser.add_argument("--threads", type=common.count, default=1, help="of torch (%(default)s)")
    parser.add_argument("--out", type=Path, default=SCRATCH / "default_call.json", help="(%(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
