"""Plan and surgery on ResNet-50 against one ``step()`` of stock Torch-Pruning, to the same MACs.

``python -m benchmarks.planning`` measures both in turn, in one run and on one thread, prints a table and
writes JSON. Scores are given in both cases (Taylor, from one gradient); only the decision and the cutting are
timed. Building the dependency graph (stock) and reading the structure (ours) are listed separately.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
import torch_pruning as tp
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import stock
from benchmarks.harness import options as common
from benchmarks.harness.files import SCRATCH, write_json
from benchmarks.harness.machine import in_words, machine
from benchmarks.harness.measure import paired_ratio, seconds
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import decide, make_plan
from disparse_structured.structure import Structure, analyse, count_macs
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task

TASKS = (
    Task("first", lambda logits: logits[:, :300]),
    Task("second", lambda logits: logits[:, 300:700]),
    Task("third", lambda logits: logits[:, 700:]),
)


def stock_pruner(model: nn.Module, inputs: tuple[torch.Tensor, ...], ratio: float) -> tp.pruner.BasePruner:
    """Torch-Pruning's pruner with Taylor importance, its graph built; ``model`` has gradients."""
    return stock.pruner(
        model, inputs, tp.importance.GroupTaylorImportance(), ratio, [model.get_submodule("fc")]
    )


def with_gradients(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with its gradients, which ``deepcopy`` alone drops."""
    copy = deepcopy(model)
    for copied, original in zip(copy.parameters(), model.parameters(), strict=True):
        copied.grad = None if original.grad is None else original.grad.clone()
    return copy


def stock_ratio(model: nn.Module, inputs: tuple[torch.Tensor, ...], macs: float) -> float:
    """The ratio at which stock pruning comes closest to ``macs``, by bisection on trial copies."""
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        trial = with_gradients(model)
        stock_pruner(trial, inputs, middle).step()
        low, high = (middle, high) if count_macs(trial, inputs) > macs else (low, middle)
    return high


def taylor(structure: Structure, model: nn.Module) -> torch.Tensor:
    """Taylor scores ``[tasks, units]`` from the model's gradients, the same for each task."""
    state = dict(model.named_parameters())
    scores = torch.zeros(structure.units, dtype=torch.float64)
    for group in structure.groups:
        for member in group.members:
            weight = state.get(member.parameter)
            if weight is None or weight.grad is None:
                continue
            product = (
                (weight * weight.grad)
                .detach()
                .movedim(member.dim, 0)
                .reshape(weight.shape[member.dim], -1)
                .sum(dim=1)
                .double()
            )
            scores[group.slice] += product[torch.from_numpy(member.index)].sum(dim=1).abs()
    return scores.expand(len(structure.tasks), -1).clone()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 when it has written its JSON."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model("resnet50", pretrained=False).eval()
    inputs = (torch.randn(1, 3, options.size, options.size),)
    model(*inputs).square().mean().backward()
    result = compare(model, inputs, Budget(macs=options.macs, round_to=1), options.rounds)
    console = Console()
    console.print(table(result["seconds"], f"resnet50 at {options.size} px, {options.macs:.0%} of the MACs"))
    macs = result["macs"]
    kept = {name: macs[name] / macs["dense"] for name in ("ours", "stock")}
    console.print(f"MACs kept: ours {kept['ours']:.2%}, stock {kept['stock']:.2%}")
    paired = result["paired_ratio"]
    console.print(f"plan + surgery / stock step(), median of paired ratios: {paired:.2f} (goal: below 1)")
    facts = machine()
    console.print(in_words(facts))
    write_json(options.out, {"machine": facts, **result})
    console.print(f"written to {options.out}")
    return 0


def compare(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], budget: Budget, rounds: int
) -> dict[str, Any]:
    """MACs of both networks, all seconds of every step, and the median of the paired ratios."""
    structure = analyse(model, inputs, TASKS)
    scores = taylor(structure, model)
    plan = make_plan(structure, scores, budget)
    ours = count_macs(apply(model, plan, structure, verify=False).model, inputs)
    ratio = stock_ratio(model, inputs, ours)
    steps: dict[str, Callable[[], object]] = {
        "ours: structure": lambda: analyse(model, inputs, TASKS),
        "ours: budget search": lambda: decide(structure, scores, budget),
        "ours: plan + surgery": lambda: apply(
            model, make_plan(structure, scores, budget), structure, verify=False
        ),
        "ours: plan + surgery, verified": lambda: apply(model, plan, structure),
    }
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        copy = with_gradients(model)
        started = time.perf_counter()
        pruner = stock_pruner(copy, inputs, ratio)
        times["stock: constructor"].append(time.perf_counter() - started)
        times["stock: step()"].append(seconds(pruner.step))
        left = count_macs(copy, inputs)
        for name, step in steps.items():
            times[name].append(seconds(step))
    return {
        "macs": {"dense": count_macs(model, inputs), "ours": ours, "stock": left},
        "seconds": dict(times),
        "paired_ratio": paired_ratio(times["ours: plan + surgery"], times["stock: step()"]),
    }


def table(times: Mapping[str, Sequence[float]], title: str) -> Table:
    """The median of every step, and relative to stock's."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    made = Table(title=f"{title}, one thread")
    made.add_column("step")
    made.add_column("median ms", justify="right")
    made.add_column("of stock step()", justify="right")
    for name, median in medians.items():
        made.add_row(name, f"{median * 1e3:.0f}", f"{median / medians['stock: step()']:.2f} x")
    return made


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("planning", __doc__)
    parser.add_argument("--rounds", type=common.count, default=9, help="measurements of each (%(default)s)")
    parser.add_argument("--macs", type=common.share, default=0.5, help="share of the MACs kept (%(default)s)")
    parser.add_argument("--size", type=common.count, default=224, help="image height and width (%(default)s)")
    parser.add_argument("--out", type=Path, default=SCRATCH / "planning.json", help="JSON file")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
