"""What the scripts of test_training_processes.py train: small nets, odd loaders, callbacks that die."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.data import Batch, Loader, Samples
from disparse_structured.tasks import Task
from disparse_structured.training import TrainingConfig, train


class Net(nn.Module):
    """Two used heads, and one that no task asks for."""

    def __init__(self, seed: int, normalized: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        between: list[nn.Module] = [nn.BatchNorm1d(16), nn.Dropout(0.2)] if normalized else []
        self.trunk = nn.Sequential(nn.Linear(4, 16), *between, nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(16, 1) for name in ("sum", "sign", "spare")})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shared = self.trunk(x)
        return {name: head(shared) for name, head in self.heads.items()}


def sum_loss(output: Tensor, batch: Any) -> Tensor:
    return (output - batch.get("sense", 1.0) * batch["image"].sum(1, keepdim=True)).square().mean()


def sign_loss(output: Tensor, batch: Any) -> Tensor:
    truth = (batch["image"][:, :1] > 0).to(output.dtype)
    return nn.functional.binary_cross_entropy_with_logits(output, truth)


TASKS = (Task("sum", "sum", sum_loss), Task("sign", "sign", sign_loss, weight=2.0))


def samples(count: int, seed: int) -> Samples:
    return Samples({"image": torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))})


class Killer:
    """Counts the moments of a run and ends the process, as kill -9 does, at the one it was given."""

    def __init__(self, moment: str | None) -> None:
        self._moment = moment
        self._counts: dict[str, int] = {}

    def pass_by(self, name: str) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        if self._moment == f"{name} {self._counts[name]}":
            os.kill(os.getpid(), signal.SIGKILL)


class Drifting:
    """A callback with a state: mixes the weights with what they were, and a random number with itself."""

    def __init__(self, model: nn.Module, killer: Killer | None = None) -> None:
        self._weight = model.get_parameter("trunk.0.weight")
        self._mean = self._weight.detach().clone()
        self._drawn = 0.0
        self._killer = killer or Killer(None)

    def step(self, optimizer: Optimizer) -> None:
        self._drawn = (
            0.5 * self._drawn + torch.rand(()).item() + random.random() + optimizer.param_groups[0]["lr"]
        )
        with torch.no_grad():
            self._mean.lerp_(self._weight, 0.1)
            self._weight.lerp_(self._mean, 0.01 * self._drawn)
        self._killer.pass_by("step")

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean.clone(), "drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean, self._drawn = state["mean"].clone(), state["drawn"]

    @property
    def drawn(self) -> float:
        return self._drawn


class Watched(list[Any]):
    """Validation batches whose reading a process may not survive."""

    def __init__(self, batches: list[Any], killer: Killer) -> None:
        super().__init__(batches)
        self._killer = killer

    def __iter__(self) -> Iterator[Any]:
        self._killer.pass_by("validation")
        return super().__iter__()


def run(checkpoint: Path, killer: Killer, result: Path) -> None:
    """Shuffled and augmented data, dropout, a callback, an early stop; ``result`` is written at the end."""

    def augment(batch: Batch) -> Batch:
        killer.pass_by("augment")
        noise = 0.2 * torch.randn_like(batch["image"])
        return {"image": batch["image"] + noise + 0.1 * (random.random() - np.random.rand())}  # noqa: NPY002

    model = Net(99 if checkpoint.exists() else 1, normalized=True)
    callback = Drifting(model, killer)
    loader = Loader(samples(90, 3), 20, shuffle=True, augment=augment)
    facts = train(
        model,
        TASKS,
        loader,
        TrainingConfig(12, 0.1, patience=5, seed=5),
        callback=callback,
        # The wrong way round, so that what is learned soon makes it worse.
        validation=Watched([{**samples(30, 4).tensors, "sense": torch.tensor(-1.0)}], killer),
        checkpoint=checkpoint,
        checkpoint_every=2,
        on_epoch=lambda epoch, means: killer.pass_by("epoch"),
    )
    found = {"facts": plain(facts), "weights": model.state_dict(), "callback": callback.drawn}
    torch.save(found, result)


def parallel(folder: Path) -> None:
    """Three runs, under torchrun or not; each process writes what it ended with."""
    rank = int(os.environ.get("RANK", "0"))
    results = {
        "plain": shared_run(normalized=False),
        "normalized": shared_run(normalized=True),
        "resumed": shared_run(normalized=True, checkpoint=folder / "run.pt"),
    }
    torch.save(results, folder / f"{rank}.result")


class Interrupted(Exception):
    """Ends a run in all processes at once."""


class Fragile(Drifting):
    """Gives up in its sixth step."""

    left = 6

    def step(self, optimizer: Optimizer) -> None:
        super().step(optimizer)
        self.left -= 1
        if not self.left:
            raise Interrupted


def shared_run(normalized: bool, checkpoint: Path | None = None) -> dict[str, Any]:
    # Batches of 9, which two cannot halve, and for 37 samples a last one of a single sample.
    loader = Loader(samples(36 if normalized else 37, 3), 9, shuffle=True)
    validation = Loader(samples(25, 4), 10)
    config = TrainingConfig(3, 3e-2, patience=3)
    heard: list[int] = []
    # What a process draws for itself must not part it from the others.
    random.seed(os.getpid())
    options: dict[str, Any] = {"validation": validation, "checkpoint": checkpoint, "checkpoint_every": 4}
    if checkpoint is not None:
        model = Net(1, normalized)
        with contextlib.suppress(Interrupted):
            train(model, TASKS, loader, config, callback=Fragile(model), **options)
    model = Net(1, normalized)
    callback = Drifting(model)
    facts = train(
        model,
        TASKS,
        loader,
        config,
        callback=callback,
        on_epoch=lambda epoch, means: heard.append(epoch),
        **options,
    )
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return {
        "facts": plain(facts),
        "weights": model.state_dict(),
        "callback": callback.drawn,
        "heard": heard,
        "processes": processes,
    }


def plain(facts: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(facts).items() if name != "seconds"}
