"""Distillation without labels against longer calibration: deviation and ΔT by inputs and steps.

``python -m benchmarks.distillation`` prunes trained networks with 64 inputs, and distills the result on 16
to 2,048 inputs. For comparison, it prunes with all of these inputs instead. The networks are those on
rendered scenes, which need no data, and those of :mod:`benchmarks.no_training`, which need a data pack. Each
is trained if it is not in ``benchmarks/.cache``. Finished rows are kept, so an interrupted run resumes. The
page lists the cells that were not run. ``--only views`` writes the page from the existing rows.

Times are CPU seconds of one thread: they hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.harness import options as common
from benchmarks.harness.cell import digest
from benchmarks.harness.files import CACHE, PAGES, RESULTS, save_weights, write_text
from benchmarks.harness.machine import in_words, machine
from benchmarks.harness.row import Shelf
from benchmarks.harness.runner import Progress, remaining
from benchmarks.harness.views import markdown, number
from benchmarks.no_training.deviation import deviation
from benchmarks.no_training.networks import NETWORKS, calibration, problem, trained
from disparse_structured.lab import scenes
from disparse_structured.lab.demo import flow
from disparse_structured.lab.demo.progress import Progress as Shown
from disparse_structured.lab.metrics import delta_t
from disparse_structured.pipeline import prune
from disparse_structured.recovery import Distillation, Student, Subject
from disparse_structured.tasks import Task

SCENES: Mapping[str, flow.Settings] = {
    "scenes": flow.FULL,
    "small scenes": dataclasses.replace(
        flow.FULL,
        channels=(16, 24, 32, 48),
        stem_width=8,
        head_width=8,
        levels=(-4, -2, -1),
        size=(24, 32),
        training=512,
        held_out=64,
        epochs=5,
        batch_size=16,
    ),
    "quick scenes": flow.QUICK,
}
"""Networks on rendered scenes: the demo's, one that takes a tenth of the time, and one for a first look."""

COUNTS = (16, 64, 256, 1024, 2048)
STEPS = (150, 600)
CALIBRATION = 64

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "varied": {"vary": True},
    "lr 0.003": {"lr": 0.003},
    "lr 0.03": {"lr": 0.03},
}
"""Options of ``Distillation`` that differ from the defaults."""


@dataclass(frozen=True)
class Cell:
    """What to run.

    Args:
        network: a key of :data:`SCENES`, or the name of one of
            :data:`benchmarks.no_training.networks.NETWORKS`.
        macs: the share that is left.
        inputs: how many the distillation reads, or if there are no steps, the pruning.
        steps: of the distillation; 0 for none.
        variant: a key of :data:`VARIANTS`.
        seed: of the network, the inputs and the distillation.
    """

    network: str
    macs: float
    inputs: int
    steps: int
    variant: str = "default"
    seed: int = 0

    @property
    def label(self) -> str:
        """All settings of the cell."""
        return (
            f"{self.network} {self.macs:g} inputs {self.inputs:04} steps {self.steps:04} {self.variant} "
            f"seed {self.seed}"
        )

    @property
    def settings(self) -> str:
        """Identifies the options of the distillation."""
        made = Distillation(None, steps=self.steps or None, samples=4096, **VARIANTS[self.variant])
        return digest(repr(made) if self.steps else "none")


@dataclass(frozen=True)
class Row:
    """The results of a cell, measured on inputs that nothing was fitted on.

    Args:
        cell: the cell.
        settings: those of the cell.
        cut: by task, the deviation as cut.
        before, after: by task, the deviation after the refit, and of the result.
        delta_before, delta_after: ΔT of these in percent.
        taken, kept: steps that were taken, and the one whose weights were kept.
        seconds: CPU seconds of the distillation, or if there is none, of the pruning.
        machine: where it ran.
    """

    cell: Cell
    settings: str
    cut: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]
    delta_before: float
    delta_after: float
    taken: int
    kept: int
    seconds: float
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Subjects:
    """A trained network, its inputs, and a measure of how well a network does.

    Args:
        dense: the network, in eval mode.
        inputs: ``inputs(count)`` are the first ``[count, 3, H, W]``; fewer if there are no more.
        check: other inputs, on which results are reported.
        delta: ΔT of a network against the dense one, in percent.
    """

    dense: nn.Module
    inputs: Callable[[int], Tensor]
    check: Tensor
    delta: Callable[[nn.Module], float]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One for each output."""
        with torch.no_grad():
            return tuple(Task(name) for name in self.dense(self.check[:1]))


@functools.cache
def subjects(network: str, seed: int, cache: Path) -> Subjects:
    """The trained network ``network``; raises :class:`benchmarks.data.DataError` without its data pack."""
    if network in SCENES:
        return _scenes(network, seed, cache)
    found = next(each for each in NETWORKS if each.name == network)
    data, dense = problem(found), trained(found, seed, cache).eval()
    figures = data.evaluate(dense)
    return Subjects(
        dense,
        lambda count: calibration(found, min(count, len(data.train)), seed),
        data.check.tensors["image"],
        lambda model: data.delta_t(figures, data.evaluate(model)),
    )


def _scenes(name: str, seed: int, cache: Path) -> Subjects:
    settings = SCENES[name]
    file = cache / f"{name.replace(' ', '-')}-{digest(repr(settings), seed)}.safetensors"
    dense = flow.network(settings, seed)
    data = flow.render(settings, seed)
    if file.is_file():
        dense.load_state_dict(load_file(file))
    else:
        flow.fit(dense, data, settings.epochs, settings.lr, seed, Shown(True))
        save_weights(file, dense)
    dense.eval()
    # The demo's own sets have the seeds 0 to 3 * seed + 2.
    images = scenes.Scenes(max(COUNTS), settings.size, 1000 + seed, cache=True)
    higher = {task: scenes.HEADLINES[task][1] for task in scenes.HEADS}
    figures = flow.evaluate(dense, data.held_out)

    def delta(model: nn.Module) -> float:
        return delta_t(figures, flow.evaluate(model, data.held_out), higher)

    return Subjects(
        dense,
        lambda count: torch.stack([images[place]["image"] for place in range(count)]),
        torch.cat([batch["image"] for batch in data.held_out]),
        delta,
    )


@functools.cache
def pruned(network: str, macs: float, inputs: int, seed: int, cache: Path) -> tuple[Any, float]:
    """The result of pruning with ``inputs`` inputs, and the CPU seconds that took."""
    given = subjects(network, seed, cache)
    began = time.process_time()
    result = prune(given.dense, given.inputs(inputs), macs=macs, samples=inputs, seed=seed)
    return result, time.process_time() - began


def run(cell: Cell, cache: Path) -> Row:
    """The row of a cell."""
    given = subjects(cell.network, cell.seed, cache)
    result, seconds = pruned(
        cell.network, cell.macs, CALIBRATION if cell.steps else cell.inputs, cell.seed, cache
    )
    model = copy.deepcopy(result.model).eval()

    def moved() -> dict[str, float]:
        return deviation(given.dense, model, given.check, given.tasks)

    before, delta, taken, kept = moved(), given.delta(model), 0, 0
    if cell.steps:
        recover = Distillation(
            given.inputs(cell.inputs), steps=cell.steps, samples=4096, **VARIANTS[cell.variant]
        )
        subject = Subject(given.dense, given.tasks, result.example_inputs, seed=cell.seed)
        began = time.process_time()
        facts = recover.prepare(subject)(Student(model, given.tasks))
        seconds, taken, kept = time.process_time() - began, facts.taken, facts.kept
    return Row(
        cell,
        cell.settings,
        dict(result.report.deviation.cut),
        before,
        moved(),
        delta,
        given.delta(model),
        taken,
        kept,
        seconds,
        machine(),
    )


def cells(options: argparse.Namespace) -> list[Cell]:
    """The cells, those that say most first."""
    found = []
    for seed in range(options.seeds):
        for network in options.networks:
            for macs in options.macs:
                for count in options.inputs:
                    found.append(Cell(network, macs, count, 0, seed=seed))
                    found += [Cell(network, macs, count, steps, seed=seed) for steps in options.steps]
                for name in options.variants:
                    if name != "default":
                        found.append(Cell(network, macs, 256, options.steps[0], name, seed))
    return found


def page(rows: Sequence[Row], missing: Sequence[Cell]) -> str:
    """The page of results."""
    parts = [
        "# Distillation against longer calibration",
        "`python -m benchmarks.distillation`. Trained networks are pruned with 64 unlabeled inputs, and the "
        "result is distilled on more of them ([how](../distillation.md)). For comparison, the network is "
        "pruned with all of these inputs, and not distilled. Deviation is the mean over the tasks of the "
        "relative deviation from the dense network. ΔT is the mean relative change of the tasks' figures. "
        "Both are measured on images that nothing was fitted on. Seconds are CPU seconds of one thread, for "
        "the distillation, or for the pruning if there are no steps.",
    ]
    for network, macs in dict.fromkeys((row.cell.network, row.cell.macs) for row in rows):
        same = [row for row in rows if (row.cell.network, row.cell.macs) == (network, macs)]
        parts.append(f"## {network} at {macs:.0%} of the MACs")
        order = sorted(same, key=lambda row: (row.cell.variant != "default", row.cell.inputs, row.cell.steps))
        head = ["inputs", "steps", "options", "seed", "deviation, refit", "after", "ΔT, refit", "after"]
        parts.append(markdown([*head, "worst task, after", "kept", "CPU s"], map(_cells, order)))
    if missing:
        names = "; ".join(cell.label for cell in missing)
        parts.append(f"Not run: {names}.")
    machines = dict.fromkeys(in_words(row.machine) for row in rows)
    parts.append("Measured on: " + "; ".join(machines) + ".")
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> list[str]:
    cell = row.cell
    worst = max(row.after, key=lambda task: row.after[task])
    return [
        str(cell.inputs),
        str(cell.steps) if cell.steps else "none",
        cell.variant if cell.steps else "",
        str(cell.seed),
        f"{_mean(row.before):.2%}",
        f"{_mean(row.after):.2%}" if cell.steps else "",
        f"{number(row.delta_before, 2)} %",
        f"{number(row.delta_after, 2)} %" if cell.steps else "",
        f"{worst} {row.after[worst]:.2%}",
        str(row.kept) if cell.steps else "",
        f"{row.seconds:.0f}",
    ]


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def write(options: argparse.Namespace) -> Path:
    """Writes the page from the rows of the present settings; its path."""
    rows = [row for row in _shelf(options).rows() if row.settings == row.cell.settings]
    known = {row.cell for row in rows}
    write_text(options.page, page(rows, [cell for cell in cells(options) if cell not in known]))
    return Path(options.page)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    return common.status(lambda: _run(options))


def _run(options: argparse.Namespace) -> Path:
    shelf, asked = _shelf(options), cells(options)
    known = {row.cell: row.settings for row in shelf.rows()}
    todo = [] if options.only == "views" else remaining(asked, lambda cell: known.get(cell) == cell.settings)
    progress = Progress(len(todo), len(asked), 1)
    for cell in todo:
        began = time.perf_counter()
        row = run(cell, options.cache)
        shelf.put(row)
        outcome = f"{_mean(row.before):.4f} to {_mean(row.after):.4f}"
        progress.finished(cell.label, time.perf_counter() - began, outcome)
        write(options)
    return write(options)


def _shelf(options: argparse.Namespace) -> Shelf[Row]:
    return Shelf(options.rows / "rows.jsonl", Row, Cell)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("distillation", __doc__)
    names = [*SCENES, *(network.name for network in NETWORKS)]
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=names,
        default=["small scenes", "scenes"],
        help="(scenes, small ones first)",
    )
    parser.add_argument("--macs", nargs="+", type=common.share, default=[0.3], help="shares to keep (0.3)")
    parser.add_argument("--inputs", nargs="+", type=common.count, default=COUNTS, help="(16 to 2,048)")
    parser.add_argument("--steps", nargs="+", type=common.count, default=STEPS, help="(150 and 600)")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="(all)")
    parser.add_argument("--seeds", type=common.count, default=1, help="how many, from 0 (%(default)s)")
    parser.add_argument("--only", choices=("views",), help="write the page from the rows that are there")
    parser.add_argument("--rows", type=Path, default=RESULTS / "distillation", help="folder of rows")
    parser.add_argument("--page", type=Path, default=PAGES / "distillation.md", help="%(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained networks (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
