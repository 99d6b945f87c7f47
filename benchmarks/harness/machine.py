"""The machine and the versions that a benchmark's numbers belong to."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

from disparse_structured.report.machine import processor

Facts = Mapping[str, str | int]
DISTRIBUTIONS = ("torch", "torch-pruning", "timm", "onnx", "onnxruntime", "numpy")


def machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, torch's threads, Python and library versions."""
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1
    return {
        "cpu": processor(),
        "cores": cores,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in DISTRIBUTIONS},
    }


def in_words(facts: Facts) -> str:
    """The facts of :func:`machine` on one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())
