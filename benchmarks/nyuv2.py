"""NYU-v2 with three dense tasks: train, prune by several methods, and report what each task lost.

``python -m benchmarks.nyuv2 --seeds 3`` prints a table and writes the same as JSON. Dense networks are
trained once for each seed and kept under ``benchmarks/.cache``; settings that change them change their
file. All methods start from the same dense network and meet the same measured MACs. Figures are measured on
the 97 validation images, on which no choice is based.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import stock
from benchmarks.data import Batch, DataError, Loader, Samples, flip, nyuv2
from benchmarks.harness import options as common
from benchmarks.harness.cell import digest
from benchmarks.harness.files import CACHE, SCRATCH, save_weights, write_json
from benchmarks.harness.machine import in_words, machine
from benchmarks.harness.views import spread
from disparse_structured.adapters.timm import DenseHead, MultiTask, multitask
from disparse_structured.decision.arbiters import Arbiter, Majority, Unanimous, WeightedMean
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.rankings import GlobalRanking, LayerRanking, PerCostRanking, Ranking
from disparse_structured.lab.datasets import TargetLoss, evaluate, figure_of_merit, nyuv2_tasks
from disparse_structured.pipeline import DiSparse, prune
from disparse_structured.scoring import Criterion
from disparse_structured.scoring.criteria import Fisher, Magnitude, Random, Taylor
from disparse_structured.tasks import Loss, Task
from disparse_structured.training.finetune import finetune

PACK_NAMES = {"segmentation": "seg13", "depth": "depth", "normals": "normals"}
SPECS = {name: nyuv2_tasks(classes=13)[task] for task, name in PACK_NAMES.items()}
LOSSES: Mapping[str, Loss] = {name: TargetLoss(name, spec.loss) for name, spec in SPECS.items()}
OUTPUTS = {name: spec.outputs for name, spec in SPECS.items()}
COLUMNS = {"seg13": "mIoU ↑", "depth": "depth m ↓", "normals": "normals ° ↓"}

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """What the dense network is, and how it is trained and fine-tuned."""

    backbone: str = "resnet10t"
    size: tuple[int, int] = (48, 64)
    epochs: int = 20
    finetune_epochs: int = 2
    batch_size: int = 16
    lr: float = 2e-3
    finetune_lr: float = 5e-4
    scored_batches: int = 12
    head_width: int = 32
    head_levels: tuple[int, ...] = (-4, -3, -2, -1)


@dataclass(frozen=True, eq=False)
class Case:
    """A dense network in eval mode, and the training batches that a method may use to prune it."""

    model: MultiTask
    inputs: tuple[Tensor, ...]
    tasks: tuple[Task, ...]
    scored: tuple[Batch, ...]


Method = Callable[[Case, float], nn.Module]
"""From a case and a fraction of its MACs to a smaller network; the model of the case is not changed."""


def _stock(over_all_layers: bool) -> Method:
    def method(case: Case, fraction: float) -> nn.Module:
        predictors = [f"heads.{name}.predict" for name in case.model.head_names]
        return stock.magnitude(case.model, case.inputs, predictors, fraction, over_all_layers=over_all_layers)

    return method


def _ours(
    criterion: Criterion | None = None,
    arbiter: Arbiter | None = None,
    ranking: Ranking | None = None,
    voters: Callable[[Case], Sequence[Task]] | None = None,
) -> Method:
    def method(case: Case, fraction: float) -> nn.Module:
        return prune(
            case.model,
            case.scored,
            voters(case) if voters else case.tasks,
            budget=Budget(macs=fraction, round_to=1),
            method=DiSparse(criterion or Fisher(), arbiter or Unanimous(), ranking or PerCostRanking()),
            refit=None,
        ).model

    return method


def _unlabeled(case: Case) -> list[Task]:
    return [replace(task, loss=None) for task in case.tasks]


def _together(case: Case) -> list[Task]:
    """One task with the sum of all losses, as pruning that does not ask the tasks has it."""
    return [Task("joint", lambda outputs: outputs, joint_loss)]


def joint_loss(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The sum of the tasks' losses."""
    return torch.stack([loss(outputs[name], batch) for name, loss in LOSSES.items()]).sum()


METHODS: Mapping[str, Method] = {
    "stock-uniform": _stock(over_all_layers=False),
    "stock-global": _stock(over_all_layers=True),
    "random": _ours(Random()),
    "magnitude": _ours(Magnitude()),
    "joint-fisher": _ours(voters=_together),
    "taylor": _ours(Taylor()),
    "fisher": _ours(),
    "fisher-majority": _ours(arbiter=Majority()),
    "fisher-mean": _ours(arbiter=WeightedMean()),
    "fisher-global": _ours(ranking=GlobalRanking()),
    "fisher-layer": _ours(ranking=LayerRanking()),
    "label-free": _ours(voters=_unlabeled),
}
"""Stock Torch-Pruning; then ours, unanimous and ranked per cost unless the name says otherwise."""


@dataclass(frozen=True)
class Row:
    """One network: where it comes from, what it costs (a share of the dense one), what it achieves."""

    method: str
    fraction: float
    stage: str
    seed: int
    macs: float
    parameters: float
    delta_t: float
    figures: Figures


def build(settings: Settings) -> MultiTask:
    """The untrained network: a pyramid head a task; initialized from torch's global random state."""
    heads = {
        name: DenseHead(outputs, settings.head_width, settings.head_levels)
        for name, outputs in OUTPUTS.items()
    }
    return multitask(settings.backbone, heads, image_size=settings.size)


def dense(settings: Settings, seed: int, train: Samples, cache: Path) -> MultiTask:
    """The trained dense network in eval mode, from ``cache`` if it was trained before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(settings)
    file = cache / f"nyuv2-{_key(settings, seed, len(train))}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    loader = Loader(train, settings.batch_size, shuffle=True, augment=flip)
    finetune(
        model,
        model.tasks(LOSSES),
        loader,
        epochs=settings.epochs,
        lr=settings.lr,
        seed=seed,
        progress=True,
        on_epoch=_announce(f"dense, seed {seed}", settings.epochs),
    )
    save_weights(file, model)
    return model.eval()


def headline(figures: Figures) -> dict[str, float]:
    """The figure of each task that ΔT is computed from."""
    return {name: figures[name][spec.headline] for name, spec in SPECS.items()}


def compare(
    settings: Settings,
    seed: int,
    train: Samples,
    val: Samples,
    methods: Mapping[str, Method],
    fractions: Sequence[float],
    cache: Path,
) -> list[Row]:
    """The rows of one seed: the dense network, and each method before and after fine-tuning."""
    model = dense(settings, seed, train, cache)
    tasks = model.tasks(LOSSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shuffled = Loader(train, settings.batch_size, shuffle=True)
        scored = tuple(itertools.islice(shuffled, settings.scored_batches))
    case = Case(model, model.example_inputs(1), tasks, scored)
    check = Loader(val, 32)
    figures = evaluate(model, check, SPECS)
    rows = [Row("dense", 1.0, "trained", seed, 1.0, 1.0, 0.0, figures)]

    def row(method: str, fraction: float, stage: str, pruned: nn.Module) -> Row:
        found = evaluate(pruned, check, SPECS)
        share = stock.macs(pruned, case.inputs) / stock.macs(model, case.inputs)
        change = figure_of_merit(figures, found, SPECS)
        return Row(method, fraction, stage, seed, share, _size(pruned) / _size(model), change, found)

    for name, method in methods.items():
        for fraction in fractions:
            pruned = method(case, fraction)
            rows.append(row(name, fraction, "pruned", pruned))
            tuned = deepcopy(pruned)
            finetune(
                tuned,
                tasks,
                Loader(train, settings.batch_size, shuffle=True, augment=flip),
                epochs=settings.finetune_epochs,
                lr=settings.finetune_lr,
                seed=seed,
                progress=True,
            )
            rows.append(row(name, fraction, "fine-tuned", tuned))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Means over seeds, with the standard deviation where there are several."""
    seeds = sorted({row.seed for row in rows})
    view = Table(title=f"NYU-v2, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}", title_justify="left")
    for column in ("method", "MACs", "params", "stage", *COLUMNS.values(), "ΔT %"):
        view.add_column(column, justify="left" if column in ("method", "stage") else "right", no_wrap=True)
    for method, fraction, stage in dict.fromkeys((row.method, row.fraction, row.stage) for row in rows):
        same = [row for row in rows if (row.method, row.fraction, row.stage) == (method, fraction, stage)]
        figures = [headline(row.figures) for row in same]
        view.add_row(
            method,
            f"{statistics.fmean(row.macs for row in same):.1%}",
            f"{statistics.fmean(row.parameters for row in same):.1%}",
            stage,
            spread([figure["seg13"] for figure in figures], 3),
            spread([figure["depth"] for figure in figures], 3),
            spread([figure["normals"] for figure in figures], 1),
            spread([row.delta_t for row in same], 1),
        )
    return view


def write(path: Path, settings: Settings, rows: Sequence[Row]) -> None:
    """Machine, settings and every row, as JSON."""
    facts = {"machine": machine(), "settings": asdict(settings), "rows": [asdict(row) for row in rows]}
    write_json(path, facts)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings(backbone=options.backbone, size=options.size, epochs=options.epochs)
    seeds, fractions = options.seeds, options.macs
    if options.quick:
        settings, seeds, fractions = replace(settings, epochs=1, finetune_epochs=1), 1, fractions[:1]
    try:
        train, val = nyuv2("train", settings.size), nyuv2("val", settings.size)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    methods = {name: METHODS[name] for name in options.methods}
    rows: list[Row] = []
    for seed in range(seeds):
        rows += compare(settings, seed, train, val, methods, fractions, options.cache)
        write(options.out, settings, rows)
    console = Console(width=None if sys.stdout.isatty() else 120)  # a file has no width to fit
    console.print(table(rows))
    console.print(in_words(machine()), style="dim")
    console.print(f"written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("nyuv2", __doc__)
    parser.add_argument("--backbone", default=Settings.backbone, help="a timm model (%(default)s)")
    parser.add_argument("--size", type=_hw, default="48x64", help="HxW of the images (%(default)s)")
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help="dense training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (%(default)s)")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3], help="fractions (0.5 0.3)")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed, one fraction")
    parser.add_argument("--out", type=Path, default=SCRATCH / "nyuv2.json", help="JSON file")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained dense networks")
    return parser


def _hw(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not (times and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 48x64")
    return int(height), int(width)


def _key(settings: Settings, seed: int, samples: int) -> str:
    used = {
        name: value
        for name, value in asdict(settings).items()
        if not name.startswith(("finetune_", "scored_"))
    }
    return digest(used, seed, samples, torch.__version__)


def _announce(what: str, epochs: int) -> Callable[[int, Mapping[str, float]], None]:
    def on_epoch(epoch: int, losses: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        print(f"{what}: epoch {epoch + 1}/{epochs}  {shown}", file=sys.stderr)

    return on_epoch


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    sys.exit(main())
