"""Trains a five-task network, prunes it without labels, fine-tunes it and runs it in ONNX Runtime."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from disparse_structured.adapters.timm import DenseHead, MultiTask, multitask
from disparse_structured.decision.budget import Budget
from disparse_structured.export import export_onnx, measure_latency
from disparse_structured.files import ONNX, PICTURE, made_folder, remove_derived
from disparse_structured.lab import scenes
from disparse_structured.lab.demo.picture import draw
from disparse_structured.lab.demo.progress import Progress
from disparse_structured.lab.demo.result import DemoResult, Figures, compare
from disparse_structured.pipeline import PruningResult, prune
from disparse_structured.report import figures
from disparse_structured.report.facts import ExportFacts, LatencyFacts
from disparse_structured.structure import count_parameters
from disparse_structured.surgery.saved import PLAN, REPORT, WEIGHTS
from disparse_structured.surgery.saving import extend_report
from disparse_structured.training.finetune import finetune

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The network, the scenes, how long it trains, and what it may cost afterward.

    Args:
        channels: widths of the backbone's four stages. timm's own widths take several times as long to train.
        stem_width: width of the backbone's first convolutions.
        head_width: channels inside each head.
        levels: the maps that every head reads; -1 is the coarsest.
        size: height and width of the scenes, in pixels.
        training, calibration, held_out: numbers of scenes to train on, to prune on, and to evaluate on.
        pictured: seeds of the scenes in the picture.
        macs: what the pruned network may cost, as a share of the dense one.
        round_to: kept widths are multiples of this. ONNX Runtime's kernels like 8.
        threads: threads of PyTorch. With maps this small a second one gains little on an idle machine, and
            loses a lot on a busy one.
        latency_rounds: timed runs of each ONNX file.
    """

    channels: tuple[int, ...] = (32, 64, 96, 128)
    stem_width: int = 16
    head_width: int = 16
    levels: tuple[int, ...] = (-5, -4, -3, -2, -1)
    size: tuple[int, int] = scenes.DEFAULT_SIZE
    training: int = 1024
    calibration: int = 64
    held_out: int = 128
    pictured: tuple[int, ...] = (10, 12)
    batch_size: int = 8
    epochs: int = 4
    lr: float = 1e-2
    finetune_epochs: int = 1
    finetune_lr: float = 3e-3
    macs: float = 0.5
    round_to: int = 8
    threads: int = 1
    latency_rounds: int = 300


FULL = Settings()
"""Two minutes on one core, and predictions worth looking at."""

QUICK = Settings(
    channels=(8, 16, 16, 24),
    stem_width=8,
    head_width=8,
    levels=(-4, -1),
    size=(24, 32),
    training=64,
    calibration=16,
    held_out=16,
    epochs=2,
    latency_rounds=10,
    round_to=1,
)
"""The same flow in seconds, with too little training for good predictions."""


@dataclass(frozen=True, eq=False)
class Data:
    """Rendered scenes. No scene is in two of the sets.

    Args:
        training: to train and fine-tune on.
        images: to prune on: images ``[N, 3, H, W]`` without labels.
        held_out: to evaluate on.
    """

    training: DataLoader[Batch]
    images: Tensor
    held_out: Sequence[Batch]


def run(
    out: str | os.PathLike[str], *, seed: int = 0, quick: bool = False, progress: bool = True
) -> DemoResult:
    """Trains a network on five tasks, prunes it to half its MACs, and shows what that costs each task.

    Args:
        out: the folder to write: ``plan.json``, ``weights.safetensors`` and ``report.json``, which
            :func:`disparse_structured.load` reads (its factory is :func:`network`), ``model.onnx`` and
            ``picture.png``.
        seed: of the weights, the training and the scenes.
        quick: use :data:`QUICK` instead of :data:`FULL`.
        progress: announce steps and losses on standard error.

    Raises:
        DisparseError: matplotlib is missing, ``out`` cannot be a folder, or an ONNX file differs from
            PyTorch.
    """
    settings = QUICK if quick else FULL
    figures.require()
    out = made_folder(Path(out))  # before minutes of work
    with _threads(settings.threads):
        return _flow(settings, seed, out, Progress(progress))


def _flow(settings: Settings, seed: int, out: Path, progress: Progress) -> DemoResult:
    with progress.step("render", f"{settings.training} scenes to train on, {settings.held_out} held out"):
        data = render(settings, seed)
        dense = network(settings, seed)
    with progress.step("train", f"{_epochs(settings.epochs)}, {_size(dense)}, five tasks"):
        fit(dense, data, settings.epochs, settings.lr, seed, progress)
        before = evaluate(dense, data.held_out)

    images = f"{settings.calibration} images without labels"
    with progress.step("prune", f"to {settings.macs:.0%} of the MACs, from {images}, without training"):
        pruned = shrink(dense, data, settings, seed, progress)
        at_once = evaluate(pruned.model, data.held_out)
        untrained = copy.deepcopy(pruned.model)

    with progress.step("fine-tune", f"{_epochs(settings.finetune_epochs)}, {_size(pruned.model)}"):
        pruned = finetuned(pruned, data, settings, seed, progress)
        after = evaluate(pruned.model, data.held_out)

    remove_derived(out)
    with progress.step("export", "dense and pruned to ONNX, compared with PyTorch, and timed"):
        exports, latency = deploy(dense, pruned, data.held_out[0]["image"], out, settings.latency_rounds)

    result = DemoResult(
        folder=str(out),
        files=(PLAN, WEIGHTS, REPORT, ONNX, PICTURE),
        plan=pruned.plan,
        report=pruned.report,
        tasks=compare(before, at_once, after),
        dense_export=exports["dense"],
        export=exports["pruned"],
        latency=latency,
        settings=dataclasses.asdict(settings),
        seed=seed,
        seconds=progress.seconds,
    )
    pruned.save(out)
    extend_report(out, result.document())
    pictured = [scenes.render(number, settings.size) for number in settings.pictured]
    networks = {"dense": dense, "pruned": untrained, "fine-tuned": pruned.model}
    draw(out / PICTURE, result, networks, pictured)
    return result


def render(settings: Settings, seed: int = 0) -> Data:
    """The scenes of one run. Each set has a random stream of its own."""
    counts = settings.training, settings.calibration, settings.held_out
    training, calibration, held_out = (
        scenes.Scenes(count, settings.size, len(counts) * seed + stream, cache=True)
        for stream, count in enumerate(counts)
    )
    return Data(
        training=DataLoader(training, settings.batch_size, shuffle=True),
        images=torch.stack([calibration[number]["image"] for number in range(len(calibration))]),
        held_out=list(DataLoader(held_out, batch_size=32)),
    )


def network(settings: Settings = FULL, seed: int = 0) -> MultiTask:
    """The dense network, untrained: a narrow ResNet-10 of timm, and a head per task that reads its maps."""
    heads = {
        task: DenseHead(outputs, width=settings.head_width, levels=settings.levels)
        for task, outputs in scenes.HEADS.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = multitask(
            "resnet10t",
            heads,
            image_size=settings.size,
            channels=settings.channels,
            stem_width=settings.stem_width,
        )
    # Convolutions on the CPU train about a quarter faster in this layout of memory.
    return model.to(memory_format=torch.channels_last)


def fit(model: nn.Module, data: Data, epochs: int, lr: float, seed: int, progress: Progress) -> None:
    """Trains all tasks together, in place."""
    finetune(
        model,
        scenes.tasks(),
        data.training,
        epochs=epochs,
        lr=lr,
        seed=seed,
        on_epoch=progress.losses,
        progress=progress.shown,
    )


def shrink(dense: nn.Module, data: Data, settings: Settings, seed: int, progress: Progress) -> PruningResult:
    """The smaller network, by the defaults of :func:`disparse_structured.prune`: no labels, no training."""
    budget = Budget(macs=settings.macs, round_to=settings.round_to)
    return prune(dense, data.images, budget=budget, seed=seed, progress=progress.shown)


def finetuned(
    pruned: PruningResult, data: Data, settings: Settings, seed: int, progress: Progress
) -> PruningResult:
    """``pruned`` after further training, in place. How far its outputs moved is no longer true of it."""
    fit(pruned.model, data, settings.finetune_epochs, settings.finetune_lr, seed, progress)
    return dataclasses.replace(pruned, report=dataclasses.replace(pruned.report, deviation=None))


@torch.no_grad()
def evaluate(model: nn.Module, batches: Sequence[Batch]) -> Figures:
    """Task name -> the figure that stands for it (:data:`disparse_structured.lab.scenes.HEADLINES`)."""
    model.eval()
    metrics = scenes.metrics()
    for batch in batches:
        outputs = model(batch["image"])
        for task, metric in metrics.items():
            metric.update(outputs[task], batch[scenes.TRUTHS[task]])
    return {task: metric.compute()[scenes.HEADLINES[task][0]] for task, metric in metrics.items()}


def deploy(
    dense: nn.Module, pruned: PruningResult, images: Tensor, out: Path, rounds: int
) -> tuple[dict[str, ExportFacts], LatencyFacts]:
    """Exports both networks, checks both files on ``images [B, 3, H, W]``, and times them on one image.

    Only the pruned file is kept, as ``out/model.onnx``. Raises :class:`ExportError` if a file differs from
    PyTorch.
    """

    def export(model: nn.Module, path: Path, plan: str) -> ExportFacts:
        return export_onnx(
            model,
            (images[:1],),
            path,
            outputs={task.name: task.tensors for task in scenes.tasks()},
            metadata={"tasks": json.dumps(list(scenes.HEADS)), "plan": plan},
            dynamic_size=False,  # a camera has one size; a free one doubles the time of the export
            check_inputs=[(images,)],
        )

    with tempfile.TemporaryDirectory() as folder:
        paths = {"dense": Path(folder, ONNX), "pruned": out / ONNX}
        exports = {
            "dense": export(dense, paths["dense"], "none: the dense network"),
            "pruned": export(pruned.model, paths["pruned"], pruned.plan.hash),
        }
        # With one thread the ratio depends least on the machine's other work.
        latency = measure_latency(paths, (images[:1],), threads=1, rounds=rounds, warmup=10)
    # The folder may be moved, and the dense file is deleted: a full path would mislead.
    return {name: dataclasses.replace(facts, path=ONNX) for name, facts in exports.items()}, latency


def _epochs(count: int) -> str:
    return f"{count} epoch" + ("s" if count > 1 else "")


def _size(model: nn.Module) -> str:
    return f"{count_parameters(model) / 1e3:,.0f} thousand parameters"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
