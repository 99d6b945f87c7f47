"""Structure, plan and surgery of large models: seconds, and memory in multiples of the model's size.

``python -m benchmarks.large_models`` runs each model, with three heads, in a process of its own on one
thread, prints a table and writes JSON. A model's size is that of its parameters and buffers. Memory is what
the process held at its peak beyond what it held before, plus the model itself; the verification, which runs
copies of the model in float64, is listed separately. Needs Linux: peaks are read from ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import options as common
from benchmarks.harness.files import SCRATCH, write_json
from benchmarks.harness.machine import in_words, machine
from benchmarks.harness.measure import in_own_process, largest_bytes, reset_peak, resident_bytes, seconds
from benchmarks.timm_sweep.cells import Cell
from benchmarks.timm_sweep.subject import Subject
from disparse_structured.structure import count_parameters
from disparse_structured.surgery.module import apply

MODELS = (
    "resnet50",
    "efficientnet_b4",
    "convnext_base",
    "vit_base_patch16_224",
    "swin_base_patch4_window7_224",
    "mobilenetv4_conv_medium",
    "regnety_032",
    "eva02_small_patch14_224",
    "maxvit_tiny_tf_224",
    "hiera_base_224",
)
SECONDS, SIZES = 60, 3
"""Goals for structure, plan and surgery together."""

STAGES = ("structure", "plan", "surgery")
VERIFIED = "surgery, verified"


def measure(name: str) -> dict[str, Any]:
    """Seconds and peak bytes of every stage for one model, in this process."""
    subject = Subject(Cell(name, "multitask"))
    model, inputs = subject.network.model, subject.network.inputs
    with torch.no_grad():
        model(*inputs)  # so that what a first forward pass allocates is not counted
    tensors = {id(each): each for each in [*model.parameters(), *model.buffers()]}.values()
    size = sum(each.numel() * each.element_size() for each in tensors)
    before = resident_bytes()
    work: dict[str, Callable[[], Any]] = {
        "structure": lambda: subject.structure,
        "plan": lambda: subject.plan,
        "surgery": lambda: apply(model, subject.plan, subject.structure, verify=False),
        VERIFIED: lambda: subject.operation,
    }
    spent, sizes = {}, {}
    for stage, run in work.items():
        reset_peak()
        spent[stage] = seconds(run)
        sizes[stage] = 1 + (largest_bytes() - before) / size
    return {
        "model": name,
        "parameters": count_parameters(model),
        "bytes": size,
        "left": count_parameters(subject.operation.model),
        "seconds": spent,
        "sizes": sizes,
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line for each model; sizes are peaks over structure, plan and surgery, and with verification."""
    made = Table(title="three heads, a batch of two, 50 % of every width, one thread")
    heads = [
        "model",
        "MB",
        *(f"{stage} s" for stage in STAGES),
        f"all (≤ {SECONDS}) s",
        f"peak (≤ {SIZES}) ×",
    ]
    for position, head in enumerate(
        [*heads, "verification s", "peak with verification ×", "parameters removed"]
    ):
        made.add_column(head, justify="right" if position else "left")
    for row in rows:
        spent, sizes = row["seconds"], row["sizes"]
        made.add_row(
            row["model"],
            f"{row['bytes'] / 1e6:.0f}",
            *(f"{spent[stage]:.1f}" for stage in STAGES),
            f"{sum(spent[stage] for stage in STAGES):.1f}",
            f"{max(sizes[stage] for stage in STAGES):.1f}",
            f"{spent[VERIFIED] - spent['surgery']:.1f}",
            f"{sizes[VERIFIED]:.1f}",
            f"{1 - row['left'] / row['parameters']:.0%}",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser("large_models", __doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names in timm (the ten of the table)")
    parser.add_argument("--out", type=Path, default=SCRATCH / "large_models.json", help="JSON file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        print(json.dumps(measure(options.models[0])))
        return 0
    rows = [in_own_process("benchmarks.large_models", "--one", "--models", name) for name in options.models]
    console = Console(width=150)
    console.print(table(rows))
    facts = {**machine(), "torch_threads": 1}
    console.print(in_words(facts))
    write_json(options.out, {"machine": facts, "rows": rows})
    console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
