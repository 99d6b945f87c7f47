"""A timm network with three tasks: trained, pruned, fine-tuned, exported.

A timm ResNet predicts the objects, the depth and the surface normals of a room. Here it is trained on rooms
that this package renders, so nothing is downloaded. In your program, `build` returns your network, and the
loaders are your own.

`prune` uses only the images of the batches, since `Compensated`, the default method, needs no labels. The
smaller network is an ordinary module. The loop that trained the dense network fine-tunes it. It is then saved
and exported.

    pip install "disparse-structured[all]"
    python examples/timm_multitask.py
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

import disparse_structured as ds
from disparse_structured.adapters.timm import DenseHead, MultiTask, multitask
from disparse_structured.lab.scenes import HEADS, TRUTHS, metrics, scene_loader
from disparse_structured.lab.scenes import tasks as losses

NAMES = ("segmentation", "depth", "normals")
TASKS = [task for task in losses() if task.name in NAMES]  # name, output and loss of each


def build(backbone: str = "resnet10t") -> MultiTask:
    """The dense network. Any timm backbone that has feature maps will do."""
    return multitask(backbone, {name: DenseHead(HEADS[name], 32) for name in NAMES}, image_size=(48, 64))


def fit(model: torch.nn.Module, loader: DataLoader, epochs: int) -> None:
    """An ordinary training loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            outputs = model(batch["image"])
            loss = sum(task.weight * task.loss(task.pick(outputs), batch) for task in TASKS)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def evaluate(model: torch.nn.Module, loader: DataLoader) -> dict[str, dict[str, float]]:
    """Every task's metrics on ``loader``."""
    found = {name: metrics()[name] for name in NAMES}
    with torch.no_grad():
        for batch in loader:
            for name, output in model(batch["image"]).items():
                found[name].update(output, batch[TRUTHS[name]])
    return {name: metric.compute() for name, metric in found.items()}


def main(backbone: str = "resnet10t", scenes: int = 256, held_out: int = 32, epochs: int = 8) -> None:
    torch.manual_seed(0)
    training = scene_loader(count=scenes, batch_size=16, size=(48, 64), shuffle=True)
    unseen = scene_loader(count=held_out, batch_size=16, size=(48, 64), seed=scenes)
    model = build(backbone)
    fit(model, training, epochs)
    print("dense", evaluate(model, unseen))

    result = ds.prune(model, training, TASKS, macs=0.5)
    print(result.report)
    print("pruned", evaluate(result.model, unseen))

    fit(result.model, training, max(1, epochs // 4))
    print("fine-tuned", evaluate(result.model, unseen))
    result.save("small")  # the weights as they are now
    facts = result.export("small/model.onnx")  # checked against PyTorch
    print("largest difference in ONNX Runtime:", max(fact.max_abs for fact in facts.parity))

    again = ds.load("small", lambda: build(backbone))
    image = next(iter(unseen))["image"]
    assert all(torch.equal(again(image)[name], output) for name, output in result.model(image).items())


if __name__ == "__main__":
    main()
