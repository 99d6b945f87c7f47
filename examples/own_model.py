r"""A network of your own: one trunk, three heads, votes with labels.

You need a plain module, a loader, and a loss for each task. Without losses, images are enough. Run the
script:

    python examples/own_model.py

or pass its `build`, `batches` and `tasks` to the command line:

    disparse prune --model examples/own_model.py:build --data examples/own_model.py:batches \
        --tasks examples/own_model.py:tasks --method disparse --macs 0.5 --out pruned
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disparse_structured import DiSparse, Task, load, prune
from disparse_structured.lab.losses import cosine, cross_entropy, depth_l1
from disparse_structured.lab.scenes import CLASSES, scene_loader


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)))))


class Rooms(nn.Module):
    """Images ``[B, 3, H, W]`` to a dict of maps; any ``forward`` that torch.export takes will do."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            Block(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            Block(2 * width),
        )
        channels = {"segmentation": len(CLASSES), "depth": 1, "normals": 3}
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.ReLU(), nn.Conv2d(width, count, 1))
                for name, count in channels.items()
            }
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.trunk(image)
        size = image.shape[-2:]
        return {name: F.interpolate(head(features), size) for name, head in self.heads.items()}


def build() -> nn.Module:
    """The dense network, the same at every call. Load your trained weights here, or pass --weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Rooms().eval()


def batches() -> Iterable[dict[str, Tensor]]:
    """Your own DataLoader; a few hundred examples are plenty for the scores."""
    return scene_loader(count=16, batch_size=4, size=(24, 32))


# A loss compares a task's output with the batch. Without one the task is scored by the response of its
# own output, so images alone are enough.
tasks = (
    Task("segmentation", "segmentation", lambda output, batch: cross_entropy(output, batch["labels"])),
    Task("depth", "depth", lambda output, batch: depth_l1(output, batch["depth"])),
    Task("normals", "normals", lambda output, batch: cosine(output, batch["normals"])),
)


def main() -> None:
    result = prune(build(), batches(), tasks, macs=0.5, method=DiSparse())  # votes, by the losses above
    print(result.plan)
    print(result.report)
    result.save("pruned")
    again = load("pruned", build)
    image = next(iter(batches()))["image"]
    for name, output in result.model(image).items():
        assert torch.equal(again(image)[name], output)


if __name__ == "__main__":
    main()
