"""Files that are only timed, and how long they take beside the dense network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from disparse_structured.latency import OnnxRuntime
from disparse_structured.pipeline.latency import EARLY

FEWEST, MOST = 8, 60
"""How often files are run in turn, at least and at most."""


@dataclass(frozen=True)
class Stopwatch:
    """Times files beside the dense one.

    Args:
        runtime: runs them.
        inputs: a batch.
        dense: the file of the dense network.
        folder: where further files are written.
    """

    runtime: OnnxRuntime
    inputs: tuple[Tensor, ...]
    dense: Path
    folder: Path

    def write(self, name: str, model: nn.Module) -> Path:
        """The file of ``model``, see :func:`write`."""
        path = self.folder / f"{name}.onnx"
        write(path, model, self.inputs)
        return path

    def times(self, files: list[Path], seconds: float) -> np.ndarray:
        """Milliseconds of the dense file, followed by ``files``, float64 ``[rounds, 1 + files]``."""
        every = [self.dense, *files]
        first = self.runtime.time_files(every, self.inputs, rounds=2)
        rounds = int(np.clip(seconds * 1e3 / first.sum(axis=1).min(), FEWEST, MOST))
        return self.runtime.time_files(every, self.inputs, rounds=rounds)

    def shares(self, files: Mapping[str, Path], seconds: float) -> dict[str, dict[str, float]]:
        """``share`` of the dense time and its quartiles ``lower`` and ``upper``, all files run in turn."""
        times = self.times(list(files.values()), seconds)
        low = np.quantile(times, EARLY, axis=0)
        ratios = np.quantile(times / times[:, :1], [0.25, 0.75], axis=0)
        return {
            name: {
                "share": float(low[place] / low[0]),
                "lower": float(ratios[0, place]),
                "upper": float(ratios[1, place]),
            }
            for place, name in enumerate(files, start=1)
        }


def write(path: Path, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Writes ``model`` as an ONNX file for this very batch.

    By torch's older exporter, which takes a tenth of the time: a benchmark writes dozens of files.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, path, dynamo=False)
