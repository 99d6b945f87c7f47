"""What the tests of the command line share: a user's project, and commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from disparse_structured.cli import main

TINY = '''
"""A network small enough to be pruned many times."""

import sys

import torch
from torch import nn

from disparse_structured import Task


class Tiny(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3))
        self.near = nn.Conv2d(width, 2, 1)
        self.far = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))

    def forward(self, image):
        shared = self.trunk(image)
        return {"near": self.near(shared), "aux": {"far": self.far(shared)}}


class Pair(Tiny):
    def forward(self, image, scale):
        found = super().forward(image * scale)
        return found["near"], found["aux"]["far"]


class ByName(Tiny):
    def forward(self, *, image):
        return super().forward(image)


class Branching(Tiny):
    def forward(self, image):
        if image.sum() > 0:
            return super().forward(image)
        return super().forward(-image)


def build():
    print("the factory says hello")
    torch.manual_seed(3)
    return Tiny()


def pair():
    torch.manual_seed(3)
    return Pair()


def wide():
    return Tiny(width=16)


def broken():
    raise ValueError("no checkpoint here")


def unfinished():
    return "a model"


class Checks:
    build = staticmethod(build)


ready = Tiny()
images = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
stacked = torch.cat(images)
nothing = []
number = 3
one_pass = iter(list(images))


def generated():
    yield from images


def endless():
    while True:
        yield from images


def labeled():
    return [(image, "labels that nobody reads") for image in images]


def pairs():
    return [{"image": image, "scale": torch.ones(4, 1, 1, 1)} for image in images]


def failing():
    yield images[0]
    raise RuntimeError("the disk is gone")


def dicts():
    return [{"image": image} for image in images]


def squares(output, batch):
    return output.square().mean()


tasks = [Task("near", "near"), Task("far", "aux.far")]
losses = [Task("near", "near", squares), Task("far", "aux.far", squares)]


def named_tasks():
    return tuple(tasks)


one_task = Task("near", "near")
not_finite = [Task("near", "near", lambda output, batch: output.sum() * float("nan"))]
'''


def prune_tiny(*more: str, model: str = "tiny:build", data: str = "tiny:images") -> list[str]:
    """A whole command line; an option in ``more`` takes the place of the same option before it."""
    given = {"--model": model, "--data": data, "--out": "out"}
    budget = [] if "--parameters" in more else ["--macs", "0.6"]
    return ["prune", *(word for pair in given.items() for word in pair), *budget, *more]


def report_of(*words: str) -> dict[str, Any]:
    """The report that a command wrote, which must succeed."""
    assert main(list(words)) == 0
    return dict(json.loads(Path("out", "report.json").read_text()))


def document_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Standard output as JSON, which it must be from its first character to its last."""
    return dict(json.loads(capsys.readouterr().out))


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that must fail."""
    assert main(list(argv)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("disparse: error: ")
    assert "Traceback" not in shown.err
    return shown.err.removeprefix("disparse: error: ").strip()


def command(words: Sequence[str]) -> None:
    """Ends the process as the command does; for processes that do nothing else."""
    raise SystemExit(main(list(words)))
