"""From a trained five-task network to a smaller one in ONNX Runtime, step by step."""

from __future__ import annotations

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
from disparse_structured.errors import DisparseError
from disparse_structured.export import export_onnx, measure_latency
from disparse_structured.lab import scenes
from disparse_structured.lab.demo.narrator import Progress
from disparse_structured.lab.demo.picture import draw
from disparse_structured.lab.demo.result import DemoResult, Figures, compare
from disparse_structured.pipeline import DiSparse, PruningResult, prune
from disparse_structured.report import figures
from disparse_structured.report.facts import ExportFacts, LatencyFacts
from disparse_structured.structure import count_parameters
from disparse_structured.surgery.saving import PLAN, REPORT, WEIGHTS, extend_report
from disparse_structured.training.finetune import finetune

ONNX, PICTURE = "model.onnx", "picture.png"

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What the network is, how many scenes it sees, for how long, and what it may cost afterwards.

    Kept widths are multiples of 8, which ONNX Runtime's kernels like. One thread: with maps this small a
    second one gains little on an idle machine, and loses a lot on a busy one.
    """

    backbone: str = "resnet10t"
    head_width: int = 32
    size: tuple[int, int] = scenes.DEFAULT_SIZE
    training: int = 1024
    voting: int = 128
    held_out: int = 128
    pictured: tuple[int, ...] = (10, 12)
    batch_size: int = 8
    epochs: int = 6
    lr: float = 1e-2
    finetune_epochs: int = 2
    finetune_lr: float = 3e-3
    macs: float = 0.5
    round_to: int = 8
    threads: int = 1
    latency_rounds: int = 300


FULL = Settings()
"""Minutes on two cores, and predictions worth looking at."""

QUICK = Settings(
    backbone="test_resnet",
    head_width=8,
    size=(24, 32),
    training=64,
    voting=16,
    held_out=16,
    epochs=3,
    finetune_epochs=1,
    latency_rounds=10,
    round_to=1,
)
"""The same flow in seconds. The network sees too little to be any good."""


@dataclass(frozen=True, eq=False)
class Data:
    """Rendered scenes: to train on, to vote on, and to judge by. No two of the three share a scene."""

    training: DataLoader[Batch]
    voting: DataLoader[Batch]
    held_out: Sequence[Batch]


def run(
    out: str | os.PathLike[str], *, seed: int = 0, quick: bool = False, progress: bool = True
) -> DemoResult:
    """Trains a network on five tasks, prunes it to half its MACs, and shows what that cost each task.

    Args:
        out: the folder to write: ``plan.json``, ``weights.safetensors`` and ``report.json``, which
            :func:`disparse_structured.load` reads (its factory is :func:`network`), ``model.onnx`` and
            ``picture.png``.
        seed: of the weights, the training and the scenes.
        quick: use :data:`QUICK` instead of :data:`FULL`.
        progress: tell on standard error what is going on.

    Raises:
        DisparseError: matplotlib is missing, ``out`` cannot be a folder, or an ONNX file differs from
            PyTorch.
    """
    settings = QUICK if quick else FULL
    figures.require()
    out = _folder(Path(out))
    with _threads(settings.threads):
        return _flow(settings, seed, out, Progress(progress))


def _flow(settings: Settings, seed: int, out: Path, narrator: Progress) -> DemoResult:
    data = render(settings, seed)
    dense = network(settings, seed)
    with narrator.step("train", f"{settings.epochs} epochs of {settings.training} scenes on {_size(dense)}"):
        fit(dense, data, settings.epochs, settings.lr, seed, narrator)
    before = evaluate(dense, data.held_out)

    with narrator.step(
        "prune", f"each task votes, and what none of them needs goes: {settings.macs:.0%} MACs"
    ):
        pruned = shrink(dense, data, settings, seed, narrator)
    at_once = evaluate(pruned.model, data.held_out)

    with narrator.step("fine-tune", f"{settings.finetune_epochs} epochs on {_size(pruned.model)}"):
        fit(pruned.model, data, settings.finetune_epochs, settings.finetune_lr, seed, narrator)
    after = evaluate(pruned.model, data.held_out)

    with narrator.step("export", "both networks to ONNX, compared with PyTorch, then timed in turn"):
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
        seconds=narrator.seconds,
    )
    pruned.save(out)
    extend_report(out, result.document())
    pictured = [scenes.render(number, settings.size) for number in settings.pictured]
    draw(out / PICTURE, result, dense, pruned.model, pictured)
    return result


def render(settings: Settings, seed: int = 0) -> Data:
    """The scenes of one run. Each seed of a loader is a stream of its own."""

    def loader(count: int, batch_size: int, stream: int, shuffle: bool = False) -> DataLoader[Batch]:
        return scenes.scene_loader(count, batch_size, settings.size, 3 * seed + stream, shuffle=shuffle)

    return Data(
        training=loader(settings.training, settings.batch_size, 0, shuffle=True),
        voting=loader(settings.voting, 16, 1),
        held_out=list(loader(settings.held_out, 32, 2)),
    )


def network(settings: Settings = FULL, seed: int = 0) -> MultiTask:
    """The dense network, untrained: a timm backbone, and for each task a head that reads all its levels."""
    heads = {
        task: DenseHead(outputs, width=settings.head_width, levels=(-5, -4, -3, -2, -1))
        for task, outputs in scenes.HEADS.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = multitask(settings.backbone, heads, image_size=settings.size)
    # Convolutions on the CPU train about a quarter faster in this layout of memory.
    return model.to(memory_format=torch.channels_last)


def fit(model: nn.Module, data: Data, epochs: int, lr: float, seed: int, narrator: Progress) -> None:
    """Trains all tasks together, in place."""
    finetune(
        model,
        scenes.tasks(),
        data.training,
        epochs=epochs,
        lr=lr,
        seed=seed,
        on_epoch=narrator.losses,
        progress=narrator.progress,
    )


def shrink(dense: nn.Module, data: Data, settings: Settings, seed: int, narrator: Progress) -> PruningResult:
    """The smaller network. Each task scores by the Fisher information of its own loss; one veto keeps."""
    return prune(
        dense,
        data.voting,
        scenes.tasks(),
        budget=Budget(macs=settings.macs, round_to=settings.round_to),
        method=DiSparse(),
        refit=None,
        seed=seed,
        progress=narrator.progress,
    )


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
    """Exports both networks, proves both files on ``images [B, 3, H, W]``, and times them on one image.

    The pruned file stays as ``out/model.onnx``. Raises :class:`ExportError` if a file differs from PyTorch.
    """

    def export(model: nn.Module, path: Path, plan: str) -> ExportFacts:
        return export_onnx(
            model,
            (images[:1],),
            path,
            outputs={task.name: task.tensors for task in scenes.tasks()},
            metadata={"tasks": json.dumps(list(scenes.HEADS)), "plan": plan},
            check_inputs=[(images,)],
        )

    with tempfile.TemporaryDirectory() as folder:
        paths = {"dense": Path(folder, ONNX), "pruned": out / ONNX}
        exports = {
            "dense": export(dense, paths["dense"], "none: the dense network"),
            "pruned": export(pruned.model, paths["pruned"], pruned.plan.hash),
        }
        # One thread: the fairest of ratios, because it depends least on what else the machine does.
        latency = measure_latency(paths, (images[:1],), threads=1, rounds=rounds, warmup=10)
    # The folder may move, and the dense file is gone: neither path would mean anything.
    return {name: dataclasses.replace(facts, path=ONNX) for name, facts in exports.items()}, latency


def _size(model: nn.Module) -> str:
    return f"{count_parameters(model) / 1e6:.2f} M parameters"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _folder(path: Path) -> Path:
    """``path``, refused before minutes of work if it cannot be a folder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DisparseError(f"the folder {str(path)!r} cannot be made: {error}. Give another one.") from error
    return path
