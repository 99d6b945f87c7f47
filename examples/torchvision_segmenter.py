"""A torchvision segmenter: half the MACs, in ONNX Runtime.

LR-ASPP on MobileNetV3 returns a dict with the entry `out`. FCN and DeepLab have a second one, `aux`, when
they are built with `aux_loss=True`; it is then a second task. Segmenters need no wrapper, and keep
their class.

The network has random weights here, and the pictures are noise. In your program, pass trained weights, and
at least 64 pictures that are resized and normalized as in use (`ds.data.images` reads a folder).

    pip install "disparse-structured[all,torchvision]"
    python examples/torchvision_segmenter.py
"""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime
import torch
from torchvision.models import segmentation

import disparse_structured as ds
from disparse_structured.adapters.torchvision import load, prune


def build() -> torch.nn.Module:
    """The dense network. With weights="DEFAULT", torchvision downloads trained ones."""
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()


def main(build: Callable[[], torch.nn.Module] = build, size: int = 224, count: int = 64) -> None:
    torch.manual_seed(0)
    model, images = build(), torch.rand(count, 3, size, size)

    smaller, result = prune(model, images, macs=0.5, method=ds.DiSparse())
    print(result.report)
    assert type(smaller) is type(model)

    result.save("small")
    facts = result.export("small/model.onnx")  # checked against PyTorch
    print("largest difference in ONNX Runtime:", max(fact.max_abs for fact in facts.parity))

    again = load("small", build)
    session = onnxruntime.InferenceSession("small/model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["out"], {session.get_inputs()[0].name: images[:1].numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), again(images[:1])["out"], atol=1e-3, rtol=1e-3)


if __name__ == "__main__":
    main()
