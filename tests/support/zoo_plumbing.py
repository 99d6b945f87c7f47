"""Networks whose awkwardness is how tasks hang on them: outputs, inputs, reach, pinned and dead parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.support.zoo_images import block


class Scene(NamedTuple):
    kind: Tensor
    dense: Tensor


@dataclass
class Result:
    scene: dict[str, Tensor]
    edge: Tensor


torch.export.register_dataclass(Result, serialized_type_name="tests.support.zoo_plumbing.Result")


class Outputs(nn.Module):
    """A trunk and two heads; sub-classes differ in how they return them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(3, 8), block(8, 12))
        self.kind, self.dense = nn.Linear(12, 5), nn.Conv2d(12, 4, 1)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.kind(x.mean((2, 3))), self.dense(x)


class TupleOutput(Outputs):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(x)


class NamedTupleOutput(Outputs):
    def forward(self, x: Tensor) -> Scene:
        return Scene(*self.heads(x))


class ObjectOutput(Outputs):
    def forward(self, x: Tensor) -> Result:
        kind, dense = self.heads(x)
        return Result({"kind": kind, "dense": dense[:, :3]}, dense[:, 3:])


class NestedOutput(Outputs):
    """A task of several tensors inside lists inside a dict."""

    def forward(self, x: Tensor) -> dict[str, list[Tensor] | dict[str, Tensor]]:
        kind, dense = self.heads(x)
        return {"scene": {"kind": kind}, "maps": [dense[:, :2], dense[:, 2:]]}


class TwoInputs(nn.Module):
    """An image and a vector; the vector conditions the image's features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = block(3, 8), block(8, 8)
        self.condition = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 16))
        self.kind, self.dense = nn.Linear(8, 5), nn.Conv2d(8, 1, 1)

    def forward(self, image: Tensor, code: Tensor) -> dict[str, Tensor]:
        scale, shift = self.condition(code)[:, :, None, None].chunk(2, 1)
        x = self.body(self.stem(image) * scale + shift)
        return {"kind": self.kind(x.mean((2, 3))), "dense": self.dense(x)}


class Flattened(nn.Module):
    """Pooling that leaves space, then ``flatten``: every channel owns a run of the linear layer's inputs."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(3, 8), block(8, 6, stride=2), pool)
        self.hidden = nn.Linear(6 * 9, 16)
        self.kind, self.pose = nn.Linear(16, 5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.hidden(self.trunk(x).flatten(1)))
        return {"kind": self.kind(x), "pose": self.pose(x)}


class PrivateBranches(nn.Module):
    """A shared trunk and a deep private branch a task; nothing private is read by the other task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(3, 8), block(8, 8))
        self.left = nn.Sequential(block(8, 12), block(12, 10), nn.Conv2d(10, 4, 1))
        self.right = nn.Sequential(block(8, 12), nn.Conv2d(12, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"left": self.left(x), "right": self.right(x)}


class PartialReach(nn.Module):
    """Three tasks leave at three depths: each reaches one layer more than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = block(3, 8), block(8, 10), block(10, 12)
        self.early, self.middle, self.late = nn.Conv2d(8, 2, 1), nn.Conv2d(10, 1, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.one(x)
        two = self.two(one)
        return {"early": self.early(one), "middle": self.middle(two), "late": self.late(self.three(two))}


class ChainedTasks(nn.Module):
    """One task's prediction is read by the other's head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = block(3, 8)
        self.coarse = nn.Conv2d(8, 3, 1)
        self.refine = nn.Sequential(block(11, 10), nn.Conv2d(10, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        coarse = self.coarse(x)
        return {"coarse": coarse, "fine": self.refine(torch.cat([x, coarse.softmax(1)], 1))}


class DeadBranch(Outputs):
    """A branch that is computed and dropped, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = nn.Sequential(block(12, 8), nn.Conv2d(8, 2, 1))
        self.uncalled = nn.Linear(12, 9)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        self.dropped(x)
        return {"kind": self.kind(x.mean((2, 3))), "dense": self.dense(x)}


def frozen_parameters() -> nn.Module:
    """Biases and norms cannot be trained; the weights can."""
    model = TupleOutput()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    return model


def frozen_branch() -> nn.Module:
    """One task's branch and half of the trunk are frozen as a whole."""
    model = PrivateBranches()
    model.trunk[0].requires_grad_(False)
    model.right.requires_grad_(False)
    return model
