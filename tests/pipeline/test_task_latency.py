"""What each task takes alone, and what it adds to the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.errors import OptionError
from disparse_structured.pipeline import task_latencies
from disparse_structured.tasks import Task
from tests.support.paper_runtime import PaperRuntime
from tests.support.plans import snapshot

IMAGES = torch.rand(2, 3, 16, 16)
TASKS = [Task(name, name) for name in ("near", "far", "both")]


class Net(nn.Module):
    """Two branches of one trunk, and a head that reads both of them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 16, 1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 24, 1)
        self.near, self.far, self.both = nn.Conv2d(8, 4, 1), nn.Conv2d(24, 4, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x).relu()
        left, right = self.left(x).relu(), self.right(x).relu()
        both = self.both(torch.cat([left, right], 1))
        return {"near": self.near(left), "far": self.far(right), "both": both}


def test_a_task_alone_takes_its_own_layers_and_adds_what_no_other_needs() -> None:
    model = Net().eval()
    before = snapshot(model)
    found = task_latencies(model, IMAGES, TASKS, PaperRuntime(step=1, aligned=1), rounds=1)

    layer = {
        name: module.in_channels * module.out_channels * 16 * 16 / 1e6
        for name, module in model.named_children()
        if isinstance(module, nn.Conv2d)
    }
    alone = {
        "near": layer["trunk"] + layer["left"] + layer["near"],
        "far": layer["trunk"] + layer["right"] + layer["far"],
        "both": layer["trunk"] + layer["left"] + layer["right"] + layer["both"],
    }
    assert found.whole == pytest.approx(sum(layer.values()))
    assert {each.task: each.alone for each in found.tasks} == pytest.approx(alone)
    assert {each.task: each.adds for each in found.tasks} == pytest.approx(
        {name: layer[name] for name in alone}
    )
    assert "adds to the others" in str(found)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("tasks", "rounds", "says"),
    [(TASKS[:1], 5, "only the task 'near'"), (TASKS, 0, "rounds must be at least 1, got 0")],
)
def test_what_cannot_be_compared_is_refused(tasks: list[Task], rounds: int, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        task_latencies(Net().eval(), IMAGES, tasks, PaperRuntime(), rounds=rounds)
