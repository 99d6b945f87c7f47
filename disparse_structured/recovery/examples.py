"""The inputs that a distillation learns from and is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batch_size, batched_leaves, map_batched, take
from disparse_structured.data.randomness import generator
from disparse_structured.errors import BatchError

_MOST_HELD_OUT = 64

Inputs = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Examples:
    """Groups of examples, each the arguments of ``forward``; one eighth of them is held out.

    Args:
        learnt: what is learnt from.
        held_out: what the result is measured on while it learns.
    """

    learnt: tuple[Inputs, ...]
    held_out: tuple[Inputs, ...]

    @classmethod
    def of(cls, groups: Sequence[Inputs], aside: Iterable[Inputs], limit: int) -> Examples:
        """The first ``limit`` examples of ``groups`` that are not among those set aside.

        Held-out examples lie between the others, in case the order matters, as in video frames.

        Raises:
            BatchError: there are fewer than two.
        """
        apart = {each for chunk in aside for each in digests(chunk)}
        found = [[name not in apart for name in digests(group)] for group in groups]
        total = min(limit, sum(map(sum, found)))
        if total < 2:
            raise BatchError(
                f"{total} example is left to distill on, without those that the report is measured on. Pass "
                "at least two others, preferably 64 or more."
            )
        held = min(_MOST_HELD_OUT, max(1, total // 8))
        chosen = {round((number + 0.5) * total / held - 0.5) for number in range(held)}
        learnt: list[Inputs] = []
        held_out: list[Inputs] = []
        number = 0
        for group, usable in zip(groups, found, strict=True):
            places: tuple[list[int], list[int]] = ([], [])
            for place, use in enumerate(usable):
                if use and number < total:
                    places[number in chosen].append(place)
                    number += 1
            for part, where in zip((learnt, held_out), places, strict=True):
                if where:
                    part.append(_rows(group, where))
        return cls(tuple(learnt), tuple(held_out))

    @property
    def samples(self) -> int:
        """How many there are, those held out included."""
        return sum(map(batch_size, (*self.learnt, *self.held_out)))

    @property
    def checked(self) -> int:
        """How many are held out."""
        return sum(map(batch_size, self.held_out))

    @property
    def digest(self) -> str:
        """SHA-256 of all examples, in order."""
        found = hashlib.sha256()
        for group in (*self.learnt, *self.held_out):
            for each in digests(group):
                found.update(each)
        return found.hexdigest()

    def batches(self, size: int, seed: int, *, exactly: bool) -> tuple[list[Inputs], list[Inputs]]:
        """Batches of ``size`` to learn from, and to measure on.

        With ``exactly``, all have that size. The examples of one batch remain together, so that what the
        dense network computes for it can be kept.

        Raises:
            BatchError: there are too few examples for one batch of each.
        """
        mixed = []
        for number, group in enumerate(self.learnt):
            order = generator(seed, "distillation", "batches", number).permutation(batch_size(group))
            mixed.append(_rows(group, order.tolist()))
        smallest = size if exactly else min(size, *map(batch_size, mixed))
        learnt = [batch for group in mixed for batch in _cut(group, smallest, whole=True)]
        held_out = [batch for group in self.held_out for batch in _cut(group, size, whole=exactly)]
        if not learnt or not held_out:
            raise BatchError(
                f"{self.samples} examples are too few to distill on: the pruned graph takes batches of "
                f"{size} only, one to learn from and one to measure on. Pass more."
            )
        return learnt, held_out


def digests(inputs: Inputs) -> list[bytes]:
    """SHA-256 of each example in ``inputs``."""
    leaves = zip(pytree.tree_leaves(inputs), batched_leaves(inputs), strict=True)
    batched = [leaf.detach().cpu().contiguous() for leaf, cut in leaves if cut]
    found = []
    for number in range(batch_size(inputs)):
        digest = hashlib.sha256()
        for leaf in batched:
            row = leaf[number].reshape(-1)
            digest.update(f"{row.dtype} {tuple(leaf.shape[1:])}".encode())
            digest.update(row.view(torch.uint8).numpy().tobytes())
        found.append(digest.digest())
    return found


def _rows(inputs: Inputs, where: Sequence[int]) -> Inputs:
    return map_batched(lambda leaf: leaf[torch.tensor(where, device=leaf.device)], inputs)


def _cut(inputs: Inputs, size: int, *, whole: bool) -> list[Inputs]:
    count = batch_size(inputs)
    end = count - size + 1 if whole else count
    return [take(inputs, slice(start, start + size)) for start in range(0, end, size)]
