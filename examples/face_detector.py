"""A deployed network: MTCNN's O-Net, pruned and put back into its detector.

MTCNN (Zhang et al., IEEE Signal Processing Letters 2016) finds faces in three steps. The last network of
the three, O-Net, has three tasks: whether a crop is a face, a better box, and five landmarks.
`facenet-pytorch` 2.6 contains trained weights, under the MIT license. They were ported from the authors'
network, which was trained on WIDER FACE and CelebA, so check the terms of these data sets too. The package
requires an older PyTorch than this one but runs with newer versions, so install it without dependencies:

    pip install "disparse-structured[all,torchvision]" requests tqdm
    pip install --no-deps facenet-pytorch
    python examples/face_detector.py photos

`photos` is a folder of pictures with people, a few dozen or more. The detector provides the inputs for
pruning: a hook collects the crops that the first two networks pass to O-Net. No labels are needed, and
nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

import disparse_structured as ds

# Names for the three tensors that O-Net returns.
TASKS = [ds.Task("box", 0), ds.Task("landmarks", 1), ds.Task("face", 2)]


def crops_of(detector: MTCNN, pictures: list[Image.Image]) -> torch.Tensor:
    """The crops ``[N, 3, 48, 48]`` that O-Net gets when ``detector`` reads ``pictures``."""
    crops: list[torch.Tensor] = []
    hook = detector.onet.register_forward_pre_hook(lambda _, inputs: crops.append(inputs[0]))
    try:
        for picture in pictures:
            detector.detect(picture)
    finally:
        hook.remove()
    return torch.cat(crops)


def faces(detector: MTCNN, pictures: list[Image.Image], sure: float = 0.9) -> list[np.ndarray]:
    """For each picture, the boxes ``[N, 4]`` with a score of at least ``sure``, from left to right."""
    found = []
    for picture in pictures:
        boxes, scores = detector.detect(picture)
        boxes = np.asarray([] if boxes is None else boxes[scores >= sure], dtype=float).reshape(-1, 4)
        found.append(boxes[boxes[:, 0].argsort()])
    return found


def main(folder: str, macs: float = 0.6) -> None:
    pictures = [Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("*.jpg"))]
    detector = MTCNN(keep_all=True, thresholds=[0.5, 0.5, 0.7]).eval()  # more crops than by default
    crops, before = crops_of(detector, pictures), faces(detector, pictures)

    result = ds.prune(detector.onet, crops, TASKS, macs=macs, samples=256)
    print(result.report)
    result.save("small")
    facts = result.export("small/onet.onnx")  # checked against PyTorch
    print("largest difference in ONNX Runtime:", max(fact.max_abs for fact in facts.parity))

    detector.onet = result.model
    for dense, pruned in zip(before, faces(detector, pictures), strict=True):
        print(f"{len(dense)} faces before, {len(pruned)} after:", *pruned.round().tolist())


if __name__ == "__main__":
    main(sys.argv[1])
