"""``--inputs``: unlabelled inputs from a file of tensors, or from the user's own code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from disparse_structured.cli.sources import load_data
from disparse_structured.cli.usage import UsageError

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")


def load_inputs(spec: str, limit: int) -> Iterable[Any]:
    """Batches of the file ``spec``, or at most ``limit`` of the loader or factory that it names.

    A file holds one tensor ``[N, ...]``, or several under the names of ``forward``'s parameters. Nothing
    in a file is executed.

    Raises:
        UsageError: there is no such file or loader, it cannot be read, or holds something else.
    """
    path = Path(spec)
    if path.suffix in SUFFIXES:
        return [_batch(path)]
    if path.is_dir():
        raise UsageError(
            f"--inputs {spec!r} is a folder. Only the model's own code knows how its images are resized and "
            "normalised: name a function that returns batches, or a file with a tensor [N, ...] of them "
            f"({', '.join(SUFFIXES)})."
        )
    return load_data(spec, limit, "--inputs")


def _batch(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"--inputs {str(path)!r}: there is no such file in {str(Path.cwd())!r}.")
    try:
        content = _read(path)
    except Exception as error:  # NumPy, zip, pickle, safetensors and the file system have no common base
        first = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"--inputs {str(path)!r} cannot be read ({type(error).__name__}: {first}). "
            "Give a file that holds numbers only: np.save, torch.save of a tensor, or safetensors."
        ) from error
    tensors = content if isinstance(content, Mapping) else {"": content}
    wrong = [type(each).__name__ for each in tensors.values() if not isinstance(each, torch.Tensor)]
    if wrong or not tensors:
        held = f"a {wrong[0]}" if wrong else "nothing"
        raise UsageError(
            f"--inputs {str(path)!r} holds {held}. Save one tensor [N, ...], or a dict of tensors named like "
            "the parameters of forward."
        )
    for tensor in tensors.values():
        if tensor.dtype == torch.uint8:
            raise UsageError(
                f"--inputs {str(path)!r} holds uint8 {list(tensor.shape)}, images as they are stored. "
                "Save what the model's forward takes: floating point, resized and normalised."
            )
    return dict(tensors) if len(tensors) > 1 else next(iter(tensors.values()))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".npy", ".npz"):
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return torch.from_numpy(found)
        with found:
            return {name: torch.from_numpy(found[name]) for name in found.files}
    return torch.load(path, map_location="cpu", weights_only=True)
