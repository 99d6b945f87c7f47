"""Saliency against its floor: one forward pass and one input-gradient backward pass a task.

``python -m benchmarks.saliency`` measures, in turn in one run and on one thread, the Fisher saliency of
four tasks and the floor: the plain module with frozen weights, and the gradient of every task's loss with
respect to the image. Peak memory is that of one batch, beside one training step (forward, backward, AdamW),
each in a process of its own. Weights are random; nothing is downloaded. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import options as common
from benchmarks.harness.files import SCRATCH, write_json
from benchmarks.harness.machine import in_words, machine
from benchmarks.harness.measure import in_own_process, in_turn, paired_ratio, peak_bytes
from disparse_structured.adapters.timm import DenseHead, LinearHead, MultiTask, multitask
from disparse_structured.scoring import score
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task

HEADS = {
    "segmentation": DenseHead(13),
    "depth": DenseHead(1),
    "normals": DenseHead(3),
    "scene": LinearHead(10),
}
BACKBONES = ("resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_100")
TIME_GOAL, MEMORY_GOAL = 1.3, 1.3


def mean_square(output: Tensor, batch: Any) -> Tensor:
    return output.square().mean()


@dataclass(frozen=True)
class Case:
    """A network, its batches, and what is measured on them."""

    backbone: str
    size: int
    batch: int
    batches: int

    def model(self) -> MultiTask:
        torch.manual_seed(0)
        return multitask(self.backbone, HEADS, image_size=self.size).eval()

    def data(self, model: MultiTask) -> list[Tensor]:
        (x,) = model.example_inputs(self.batch * self.batches)
        return list(x.split(self.batch))

    def works(self, names: Sequence[str]) -> dict[str, Callable[[], object]]:
        """Those in ``names`` of: floor, Fisher with losses, Fisher without labels, training step."""
        model = self.model()
        data = self.data(model)
        made: dict[str, Callable[[], object]] = {
            "floor": lambda: floor(model, data),
            "training step": lambda: training_step(model, data[0]),
        }
        for name, loss in (("Fisher", mean_square), ("Fisher, label-free", None)):
            if name in names:
                made[name] = self._fisher(model, data, tuple(Task(task, task, loss) for task in HEADS))
        return {name: made[name] for name in names}

    def _fisher(self, model: MultiTask, data: list[Tensor], tasks: tuple[Task, ...]) -> Callable[[], object]:
        structure = analyse(model, (data[0],), tasks)
        return lambda: score(model, structure, data, Fisher())


def floor(model: MultiTask, data: Sequence[Tensor]) -> None:
    """One forward pass and one input-gradient backward pass a task, for each batch."""
    model.requires_grad_(False)
    for x in data:
        x = x.clone().requires_grad_()
        losses = [mean_square(output, x) for output in model(x).values()]
        for loss in losses:
            torch.autograd.grad(loss, x, retain_graph=loss is not losses[-1])
    model.requires_grad_(True)


def training_step(model: MultiTask, x: Tensor) -> None:
    """Forward, backward and AdamW: the first step of a training run."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.stack([mean_square(output, x) for output in model(x).values()]).sum().backward()
    optimizer.step()


def peak(case: Case, name: str) -> int:
    """Peak growth in bytes, measured in a process of its own."""
    arguments = [case.backbone, case.size, case.batch, 1, name]
    return int(in_own_process("benchmarks.saliency", "--peak", *map(str, arguments)))


def compare(case: Case, rounds: int) -> list[dict[str, Any]]:
    """One row for Fisher with losses, and one for Fisher without labels."""
    ours = ("Fisher", "Fisher, label-free")
    seconds = in_turn(case.works(("floor", *ours)), rounds)
    training = peak(case, "training step")
    rows = []
    for name in ours:
        used = peak(case, name)
        rows.append(
            {
                "backbone": case.backbone,
                "what": name,
                "seconds": statistics.median(seconds[name]),
                "floor_seconds": statistics.median(seconds["floor"]),
                "time_ratio": statistics.median(seconds[name]) / statistics.median(seconds["floor"]),
                "paired_time_ratio": paired_ratio(seconds[name], seconds["floor"]),
                "peak_bytes": used,
                "training_peak_bytes": training,
                "memory_ratio": used / training,
                "all_seconds": seconds[name],
                "all_floor_seconds": seconds["floor"],
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    view = Table(title=title, title_justify="left")
    for column in ("backbone", "what", "ms", "floor ms", "ratio", "paired", "MiB", "training MiB", "ratio"):
        view.add_column(column, justify="left" if column in ("backbone", "what") else "right")
    for row in rows:
        view.add_row(
            row["backbone"],
            row["what"],
            f"{row['seconds'] * 1e3:.0f}",
            f"{row['floor_seconds'] * 1e3:.0f}",
            f"{row['time_ratio']:.2f}",
            f"{row['paired_time_ratio']:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            f"{row['training_peak_bytes'] / 2**20:.0f}",
            f"{row['memory_ratio']:.2f}",
        )
    return view


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    if options.peak:
        backbone, size, batch, batches, name = options.peak
        case = Case(backbone, int(size), int(batch), int(batches))
        print(json.dumps(peak_bytes(case.works((name,))[name])))
        return 0
    backbones, rounds = (options.backbones[:1], 3) if options.quick else (options.backbones, options.rounds)
    console = Console()
    rows: list[dict[str, Any]] = []
    for backbone in backbones:
        rows += compare(Case(backbone, options.size, options.batch, options.batches), rounds)
    title = (
        f"Saliency of {len(HEADS)} tasks, {options.batches} batches of {options.batch} at {options.size} px, "
        "one thread"
    )
    console.print(table(rows, title))
    met = all(row["time_ratio"] <= TIME_GOAL and row["memory_ratio"] < MEMORY_GOAL for row in rows)
    console.print(
        f"goals: at most {TIME_GOAL} x the floor's time, below {MEMORY_GOAL} x a training step's memory: "
        f"{'met' if met else 'not met'}"
    )
    console.print(in_words(machine()), style="dim")
    settings = {"size": options.size, "batch": options.batch, "batches": options.batches, "rounds": rounds}
    facts = {"machine": machine(), "settings": settings, "tasks": list(HEADS), "rows": rows}
    write_json(options.out, facts)
    console.print(f"written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("saliency", __doc__)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="timm models")
    parser.add_argument("--size", type=int, default=96, help="image height and width (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images a batch (%(default)s)")
    parser.add_argument("--batches", type=int, default=2, help="batches a measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="the first backbone only, three rounds")
    parser.add_argument("--out", type=Path, default=SCRATCH / "saliency.json", help="JSON file")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
