"""Checks an installed package: ``check_install.py VERSION EXTRA``, in the environment of release.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import disparse_structured as ds
from disparse_structured.errors import MissingExtraError


def build() -> torch.nn.Module:
    """A tiny network for images ``[N, 3, 8, 8]``."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 4)
    ).eval()


def main(version: str, extra: str) -> None:
    """Imports, runs the command, prunes, loads, and exports where ONNX is installed."""
    assert Path(ds.__file__).is_relative_to(sys.prefix), ds.__file__
    assert ds.__version__ == version, ds.__version__
    command = Path(sys.executable).with_name("disparse")
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version in said, said

    torch.manual_seed(0)
    images = torch.rand(16, 3, 8, 8)
    result = ds.prune(build(), images, macs=0.5)
    assert result.report.costs["macs"].ratio <= 0.5
    assert result.report.verification is not None
    result.save("small")
    with torch.no_grad():
        assert torch.equal(ds.load("small", build)(images), result.model(images))

    if extra in ("onnx", "all"):
        print(result.export("small/model.onnx"))  # raises if ONNX Runtime computes something else
    else:
        refused = refusal(result)
        assert "disparse-structured[onnx]" in refused, refused
    python = sys.version.split()[0]
    print(f"checked: {version} with {extra or 'no extra'}, Python {python}, torch {torch.__version__}")


def refusal(result: ds.pipeline.PruningResult) -> str:
    """The error of an export without the extra ``onnx``."""
    try:
        result.export("small/model.onnx")
    except MissingExtraError as error:
        return str(error)
    return "an export"


if __name__ == "__main__":
    main(*sys.argv[1:])
