"""From a trained five-task network to a smaller one in ONNX Runtime, step by step."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured import scenes
from disparse_structured.adapters.timm import DenseHead, MultiTask, multitask
from disparse_structured.demo.narrator import Narrator
from disparse_structured.demo.picture import draw
from disparse_structured.demo.result import DemoResult, Figures, compare
from disparse_structured.errors import DisparseError
from disparse_structured.export import export_onnx, measure_latency
from disparse_structured.pipeline import Pruned, prune
from disparse_structured.recovery.finetune import finetune
from disparse_structured.report import figures
from disparse_structured.report.facts import ExportFacts, LatencyFacts
from disparse_structured.saving import REPORT
from disparse_structured.structure import count_macs, count_parameters

ONNX, PICTURE = "model.onnx", "picture.png"

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What the network is, what it sees, and for how long. The scenes of the four uses are different ones."""

    backbone: str = "resnet10t"
    head_width: int = 32
    size: tuple[int, int] = scenes.DEFAULT_SIZE
    training: int = 1024
    voting: int = 128
    held_out: int = 128
    pictured: tuple[int, ...] = (10, 14)
    batch_size: int = 8
    epochs: int = 6
    lr: float = 1e-2
    finetune_epochs: int = 2
    finetune_lr: float = 3e-3
    macs: float = 0.5
    latency_rounds: int = 100


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
)
"""The same flow in seconds. The network sees too little to be any good."""


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
            PyTorch. An earlier result in ``out`` is replaced at the end only.
    """
    settings = QUICK if quick else FULL
    figures.require()
    out = _folder(Path(out))
    narrator = Narrator(progress)
    tasks = scenes.tasks()
    # Seeds of scenes are streams of their own, so these sets share no scene.
    training = scenes.scene_loader(
        settings.training, settings.batch_size, settings.size, seed=3 * seed, shuffle=True
    )
    voting = scenes.scene_loader(settings.voting, 16, settings.size, seed=3 * seed + 1)
    held_out = list(scenes.scene_loader(settings.held_out, 32, settings.size, seed=3 * seed + 2))

    dense = network(settings, seed)
    with narrator.step("train", f"training {_described(dense)} on {settings.training} rendered scenes"):
        finetune(
            dense,
            tasks,
            training,
            epochs=settings.epochs,
            lr=settings.lr,
            seed=seed,
            on_epoch=narrator.losses,
            progress=progress,
        )
    before = evaluate(dense, held_out)

    with narrator.step(
        "prune", f"each task votes; what none of them needs goes, to {settings.macs:.0%} MACs"
    ):
        pruned = prune(
            dense, _images(held_out)[:2], tasks, voting, macs=settings.macs, seed=seed, progress=progress
        )
    at_once = evaluate(pruned.model, held_out)

    with narrator.step("fine-tune", "training what is left a little more"):
        finetune(
            pruned.model,
            tasks,
            training,
            epochs=settings.finetune_epochs,
            lr=settings.finetune_lr,
            seed=seed,
            on_epoch=narrator.losses,
            progress=progress,
        )
    after = evaluate(pruned.model, held_out)

    with narrator.step("export", "writing ONNX files, comparing them with PyTorch, timing them"):
        exports, latency = deploy(dense, pruned, _images(held_out), out, rounds=settings.latency_rounds)

    result = DemoResult(
        folder=str(out),
        files=("plan.json", "weights.safetensors", REPORT, ONNX, PICTURE),
        plan=pruned.plan,
        report=pruned.report,
        tasks=compare(before, at_once, after),
        dense_export=exports["dense"],
        export=exports["pruned"],
        latency=latency,
        settings=dataclasses.asdict(settings),
        seed=seed,
        threads=torch.get_num_threads(),
        seconds=narrator.seconds,
    )
    pruned.save(out)
    _replace(out / REPORT, json.dumps(result.document(), indent=2, sort_keys=True) + "\n")
    draw(
        out / PICTURE,
        result,
        dense,
        pruned.model,
        [scenes.render(i, settings.size) for i in settings.pictured],
    )
    return result


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


@torch.no_grad()
def evaluate(model: nn.Module, batches: Sequence[Batch]) -> Figures:
    """Task name -> the figure that stands for it (:data:`disparse_structured.scenes.HEADLINES`)."""
    model.eval()
    metrics = scenes.metrics()
    for batch in batches:
        outputs = model(batch["image"])
        for task, metric in metrics.items():
            metric.update(outputs[task], batch[scenes.TRUTHS[task]])
    return {task: metric.compute()[scenes.HEADLINES[task][0]] for task, metric in metrics.items()}


def deploy(
    dense: nn.Module, pruned: Pruned, images: Tensor, out: Path, *, rounds: int
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


def _described(model: MultiTask) -> str:
    macs, parameters = count_macs(model, model.example_inputs()), count_parameters(model)
    threads = torch.get_num_threads()
    return (
        f"a network of {len(model.head_names)} tasks ({macs / 1e6:.0f} M MACs, {parameters / 1e6:.1f} M "
        f"parameters, {threads} thread{'s' if threads > 1 else ''})"
    )


def _images(batches: Sequence[Batch]) -> Tensor:
    return batches[0]["image"]


def _folder(path: Path) -> Path:
    """``path``, refused before minutes of work if it cannot be a folder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DisparseError(f"the folder {str(path)!r} cannot be made: {error}. Give another one.") from error
    return path


def _replace(path: Path, text: str) -> None:
    """Writes ``path`` at once or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8", newline="\n")
    os.replace(draft, path)
