"""The inputs that a distillation is trained on and measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.data.arguments import described
from disparse_structured.data.batches import batch_size, batched_leaves, map_batched
from disparse_structured.data.randomness import generator
from disparse_structured.errors import BatchError

_MOST_HELD_OUT = 64

Inputs = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples of a group, which are read when they are needed."""

    group: Inputs
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Inputs:
        """The arguments of ``forward``."""
        return map_batched(lambda leaf: leaf[torch.tensor(self.rows, device=leaf.device)], self.group)

    def cut(self, size: int, *, whole: bool) -> list[Batch]:
        """Batches of ``size``; without ``whole``, the last one may have fewer."""
        end = len(self) - size + 1 if whole else len(self)
        return [Batch(self.group, self.rows[start : start + size]) for start in range(0, end, size)]


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of each group to train on, and the eighth that is held out.

    Args:
        learned: what the network is trained on.
        held_out: what it is measured on meanwhile.
    """

    learned: tuple[Batch, ...]
    held_out: tuple[Batch, ...]

    @classmethod
    def of(cls, groups: Sequence[Inputs], aside: Iterable[Inputs], limit: int) -> Examples:
        """The first ``limit`` examples of ``groups`` that are not among those set aside.

        Held-out examples lie between the others, in case the order matters, as in video frames.

        Raises:
            BatchError: there are fewer than two.
        """
        apart = {each for chunk in aside for each in digests(chunk)}
        found = [
            (number, row)
            for number, group in enumerate(groups)
            for row, name in enumerate(digests(group) if apart else [b""] * batch_size(group))
            if name not in apart
        ][:limit]
        if len(found) < 2:
            raise BatchError(
                f"there are {len(found)} examples to distill on, not counting those that the report is "
                "measured on. Pass at least two others, preferably 64 or more."
            )
        held = min(_MOST_HELD_OUT, max(1, len(found) // 8))
        chosen = {round((number + 0.5) * len(found) / held - 0.5) for number in range(held)}
        parts: tuple[list[Batch], list[Batch]] = ([], [])
        for number, group in enumerate(groups):
            for part, out in zip(parts, (False, True), strict=True):
                rows = [
                    row
                    for place, (owner, row) in enumerate(found)
                    if owner == number and (place in chosen) == out
                ]
                if rows:
                    part.append(Batch(group, tuple(rows)))
        return cls(tuple(parts[0]), tuple(parts[1]))

    @property
    def samples(self) -> int:
        """How many there are, those held out included."""
        return sum(map(len, (*self.learned, *self.held_out)))

    @property
    def checked(self) -> int:
        """How many are held out."""
        return sum(map(len, self.held_out))

    @property
    def digest(self) -> str:
        """SHA-256 of all examples, in order."""
        found = hashlib.sha256()
        for batch in (*self.learned, *self.held_out):
            names = digests(batch.group)
            for row in batch.rows:
                found.update(names[row])
        return found.hexdigest()

    def batches(self, size: int, seed: int, *, exactly: bool) -> tuple[list[Batch], list[Batch]]:
        """Batches of ``size`` to train on, in random order, and to measure on.

        With ``exactly``, all have that size. A batch always has the same examples, so that the dense
        network's outputs for it can be kept.

        Raises:
            BatchError: there are too few examples for one batch of each.
        """
        mixed = []
        for number, group in enumerate(self.learned):
            order = generator(seed, "distillation", "batches", number).permutation(len(group))
            mixed.append(Batch(group.group, tuple(group.rows[each] for each in order)))
        smallest = size if exactly else min([size, *map(len, mixed)])
        learned = [batch for group in mixed for batch in group.cut(smallest, whole=True)]
        held_out = [batch for group in self.held_out for batch in group.cut(size, whole=exactly)]
        if not learned or not held_out:
            raise BatchError(
                f"{self.samples} examples are too few to distill on: the pruned graph only takes batches of "
                f"{size}, and needs one to train on and one to measure on. Pass more."
            )
        return learned, held_out


def check_shapes(inputs: Inputs, example: Inputs) -> None:
    """Raises :class:`BatchError` unless ``inputs`` are of the kinds and shapes of ``example``."""
    found, wanted = (_shapes(each) for each in (inputs, example))
    if found != wanted:
        raise BatchError(
            f"the examples to distill on hold {described(inputs)}, but the model is pruned with "
            f"{described(example)}. Pass examples of the same shape."
        )


def _shapes(inputs: Inputs) -> list[object]:
    leaves = zip(pytree.tree_leaves(inputs), batched_leaves(inputs), strict=True)
    return [
        (leaf.is_floating_point() or leaf.dtype, leaf.shape[1 if cut else 0 :])
        if isinstance(leaf, torch.Tensor)
        else type(leaf)
        for leaf, cut in leaves
    ]


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
