"""Structure, plan and surgery of large models: seconds, and memory in sizes of the model.

``python -m benchmarks.large_models`` runs each model, with three heads, in a process of its own on one
thread, prints a table and writes JSON. A model's size is that of its parameters and buffers. Memory is what
the process held at its peak beyond what it held before, plus the model itself; what the proof adds, which
runs copies of the model in float64, is listed apart. Needs Linux: peaks are read from ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
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
PROVEN = "surgery, proven"


def measure(name: str) -> dict[str, Any]:
    """Seconds and peak bytes of every stage for one model, in this process."""
    subject = Subject(Cell(name, "multitask"))
    model, inputs = subject.network.model, subject.network.inputs
    with torch.no_grad():
        model(*inputs)  # what a first forward pass allocates is not ours
    tensors = {id(each): each for each in [*model.parameters(), *model.buffers()]}.values()
    size = sum(each.numel() * each.element_size() for each in tensors)
    before = _status("VmRSS")
    work: dict[str, Callable[[], Any]] = {
        "structure": lambda: subject.structure,
        "plan": lambda: subject.plan,
        "surgery": lambda: apply(model, subject.plan, subject.structure, verify=False),
        PROVEN: lambda: subject.operation,
    }
    seconds, sizes = {}, {}
    for stage, run in work.items():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        started = time.perf_counter()
        run()
        seconds[stage] = time.perf_counter() - started
        sizes[stage] = 1 + (_status("VmHWM") - before) / size
    return {
        "model": name,
        "parameters": count_parameters(model),
        "bytes": size,
        "left": count_parameters(subject.operation.model),
        "seconds": seconds,
        "sizes": sizes,
    }


def _status(name: str) -> int:
    """Bytes, from what the system says of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: this benchmark needs Linux.")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a model; sizes are peaks over structure, plan and surgery, and with the proof."""
    made = Table(title="three heads, a batch of two, 50 % of every width, one thread")
    heads = [
        "model",
        "MB",
        *(f"{stage} s" for stage in STAGES),
        f"all (≤ {SECONDS}) s",
        f"peak (≤ {SIZES}) ×",
    ]
    for position, head in enumerate([*heads, "proof s", "peak with proof ×", "parameters removed"]):
        made.add_column(head, justify="right" if position else "left")
    for row in rows:
        seconds, sizes = row["seconds"], row["sizes"]
        made.add_row(
            row["model"],
            f"{row['bytes'] / 1e6:.0f}",
            *(f"{seconds[stage]:.1f}" for stage in STAGES),
            f"{sum(seconds[stage] for stage in STAGES):.1f}",
            f"{max(sizes[stage] for stage in STAGES):.1f}",
            f"{seconds[PROVEN] - seconds['surgery']:.1f}",
            f"{sizes[PROVEN]:.1f}",
            f"{1 - row['left'] / row['parameters']:.0%}",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_models", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names in timm (the ten of the table)")
    parser.add_argument("--out", type=Path, default=Path("out/large_models.json"), help="JSON file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        print(json.dumps(measure(options.models[0])))
        return 0
    rows = []
    for name in options.models:
        command = [sys.executable, "-m", "benchmarks.large_models", "--one", "--models", name]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
    console = Console(width=150)
    console.print(table(rows))
    facts = {**machine(), "torch_threads": 1}
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
