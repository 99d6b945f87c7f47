"""Random numbers that neither disturb the user's generators nor depend on them."""

from __future__ import annotations

import functools
import hashlib
import random
from typing import Any

import numpy as np
import torch


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A separate generator for each seed and purpose, the same in every process."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def signs(source: np.random.Generator, rows: int, count: int) -> torch.Tensor:
    """int8 ``[rows, count]`` of -1 and 1; drawn row by row, so that parts equal the whole."""
    words = source.integers(0, 2**32, size=(rows, -(-count // 32)), dtype=np.uint32)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=count)
    return torch.from_numpy(bits).view(torch.int8).mul_(2).sub_(1)


class Isolation:
    """``with isolation:`` uses separate random states; Python's, NumPy's and torch's are restored.

    The separate states start from ``seed`` and continue from one ``with`` to the next. Loaders that shuffle
    and losses that draw samples are reproducible inside.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._inside = _first_states(seed, self._cuda)
        self._outside = self._inside

    def __enter__(self) -> None:
        self._outside = self._states()
        self._restore(self._inside)

    def __exit__(self, *error: object) -> None:
        self._inside = self._states()
        self._restore(self._outside)

    def _states(self) -> Any:
        cuda = None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)
        numpy = np.random.get_state()  # noqa: NPY002 (the global one that a user's loader may draw from)
        return random.getstate(), numpy, torch.get_rng_state(), cuda

    def _restore(self, states: Any) -> None:
        python, numpy, cpu, cuda = states
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self._cuda)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=16, typed=True)  # typed, because the generator tells True from 1
def _first_states(seed: int, cuda: torch.device | None) -> Any:
    """The states that an isolation starts from; they are only read."""
    state = int(generator(seed, "isolation").integers(2**32))
    return (
        random.Random(state).getstate(),
        np.random.RandomState(state).get_state(),
        torch.Generator().manual_seed(state).get_state(),
        None if cuda is None else torch.Generator(cuda).manual_seed(state).get_state(),
    )
