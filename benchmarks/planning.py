"""Plan and surgery on ResNet-50 against one ``step()`` of stock Torch-Pruning, to the same MACs.

``python -m benchmarks.planning`` measures both in turn, in one run, on one thread, prints a table and
writes JSON. Scores are given in both cases (Taylor, from one gradient); what is timed is the decision and
the cutting. Building the dependency graph (stock) and reading the structure (ours) are listed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import timm
import torch
import torch_pruning as tp
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.machine import machine
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
    return tp.pruner.BasePruner(
        model,
        inputs,
        tp.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=[model.fc],
        pruning_ratio_dict={},
        channel_groups={},
        num_heads={},
    )


def with_gradients(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that has its gradients too; ``deepcopy`` alone drops them."""
    copy = deepcopy(model)
    for copied, original in zip(copy.parameters(), model.parameters(), strict=True):
        copied.grad = None if original.grad is None else original.grad.clone()
    return copy


def stock_ratio(model: nn.Module, inputs: tuple[torch.Tensor, ...], macs: float) -> float:
    """The ratio at which stock pruning comes nearest to ``macs``, by bisection on trial copies."""
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        trial = with_gradients(model)
        stock_pruner(trial, inputs, middle).step()
        low, high = (middle, high) if count_macs(trial, inputs) > macs else (low, middle)
    return high


def taylor(structure: Structure, model: nn.Module) -> torch.Tensor:
    """Taylor scores ``[tasks, units]`` from the model's gradients; the same for each task."""
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


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 when it has written its JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (default: %(default)s)")
    parser.add_argument(
        "--macs", type=float, default=0.5, help="share of the MACs kept (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=224, help="image height and width (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/planning.json"), help="JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model("resnet50", pretrained=False).eval()
    inputs = (torch.randn(1, 3, options.size, options.size),)
    model(*inputs).square().mean().backward()
    budget = Budget(macs=options.macs)
    structure = analyse(model, inputs, TASKS)
    scores = taylor(structure, model)
    plan = make_plan(structure, scores, budget)
    ours_macs = count_macs(apply(model, plan, structure, verify=False).model, inputs)
    ratio = stock_ratio(model, inputs, ours_macs)
    times: dict[str, list[float]] = {}

    def record(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(seconds(work))

    for _ in range(options.rounds):
        copy = with_gradients(model)
        start = time.perf_counter()
        pruner = stock_pruner(copy, inputs, ratio)
        times.setdefault("stock: constructor", []).append(time.perf_counter() - start)
        record("stock: step()", pruner.step)
        stock_macs = count_macs(copy, inputs)
        record("ours: structure", lambda: analyse(model, inputs, TASKS))
        record("ours: budget search", lambda: decide(structure, scores, budget))
        record(
            "ours: plan + surgery",
            lambda: apply(model, make_plan(structure, scores, budget), structure, verify=False),
        )
        record("ours: plan + surgery, verified", lambda: apply(model, plan, structure))
    medians = {name: statistics.median(values) for name, values in times.items()}
    paired = statistics.median(
        ours / stock
        for ours, stock in zip(times["ours: plan + surgery"], times["stock: step()"], strict=True)
    )
    table = Table(title=f"resnet50 at {options.size} px, {options.macs:.0%} of the MACs, one thread")
    table.add_column("step")
    table.add_column("median ms", justify="right")
    table.add_column("of stock step()", justify="right")
    for name, median in medians.items():
        table.add_row(name, f"{median * 1e3:.0f}", f"{median / medians['stock: step()']:.2f} x")
    console = Console()
    console.print(table)
    dense = count_macs(model, inputs)
    console.print(f"MACs kept: ours {ours_macs / dense:.2%}, stock {stock_macs / dense:.2%}")
    console.print(f"plan + surgery / stock step(), median of paired ratios: {paired:.2f} (goal: below 1)")
    facts = machine()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": facts,
        "macs": {"dense": dense, "ours": ours_macs, "stock": stock_macs},
        "seconds": times,
        "paired_ratio": paired,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
