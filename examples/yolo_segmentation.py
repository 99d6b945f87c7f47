"""A YOLO segmenter: pruned, exported by Ultralytics, loaded again.

Both the dense and the smaller network are Ultralytics objects: `val`, `predict`, `train` and `export` work on
both. The tasks are four raw outputs of the head: boxes, scores, mask coefficients and prototypes.

Here the network is built from its configuration, with random weights, and the two pictures come with the
library. In your program, pass your trained file and a folder of at least 64 pictures.
Ultralytics is under the AGPL-3.0.

    pip install "disparse-structured[all,ultralytics]"
    python examples/yolo_segmentation.py
"""

from __future__ import annotations

import torch
from ultralytics import YOLO
from ultralytics.utils import ASSETS

import disparse_structured as ds
from disparse_structured.adapters import ultralytics as pruning


def main(network: str = "yolo11n-seg.yaml", pictures: str = str(ASSETS), size: int = 320) -> None:
    yolo = YOLO(network)
    images = pruning.images(yolo, pictures, imgsz=size)

    # This choice is quick, since training follows. Without training, keep the defaults.
    result = pruning.prune(yolo, images, macs=0.6, method=ds.DiSparse(), refit=None)
    print(result.report)

    found = result.yolo.predict(pictures, imgsz=size, verbose=False)
    print([len(each.boxes) for each in found], "objects")
    print(result.yolo.export(format="onnx", imgsz=size, simplify=False))

    result.save("small")
    again = pruning.load("small")  # trains with again.train(data=...)
    weights = result.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())


if __name__ == "__main__":
    main()
