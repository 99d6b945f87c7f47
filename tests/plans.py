"""Plans that no criterion made: random ones, and all-but-one ones, within the count constraints."""

from __future__ import annotations

import numpy as np
import torch

from disparse_structured.plan import Plan
from disparse_structured.structure import ChannelGroup, Structure


def random_keep(
    structure: Structure, seed: int, share: float = 0.5, only: tuple[str, ...] | None = None
) -> torch.Tensor:
    """Bool ``[units]``: about ``share`` of every group (of ``only``) stays, at least one unit of each.

    Groups bound by a count constraint keep as many as it allows; each group of ``units > 1`` loses at
    least one if that is possible.
    """
    generator = np.random.default_rng(seed)
    keep = torch.ones(structure.units, dtype=torch.bool)
    counts = {group.name: _about(share * group.units, group.units) for group in structure.groups}
    for constraint in structure.constraints:
        units = [structure.group(name).units for name in constraint.groups]
        most = min(width // part for width, part in zip(units, constraint.shares, strict=True))
        times = _about(share * most, most)
        for name, part in zip(constraint.groups, constraint.shares, strict=True):
            counts[name] = times * part
    wanted = structure.bound_to(only) if only is not None else set(counts)
    for group in structure.groups:
        gone = generator.permutation(group.units)[counts[group.name] :]
        if group.name in wanted:
            keep[group.start + torch.from_numpy(gone)] = False
    return keep


def _about(wanted: float, most: int) -> int:
    return min(max(round(wanted), 1), max(most - 1, 1))


def random_plan(structure: Structure, seed: int, share: float = 0.5) -> Plan:
    return Plan.from_keep(structure, random_keep(structure, seed, share))


def removed_positions(group: ChannelGroup, keep: torch.Tensor, index: np.ndarray) -> np.ndarray:
    """Where the removed units of ``group`` stand, for the ``index`` ``[units, multiplicity]`` of a member."""
    return np.sort(index[~keep[group.slice].numpy()].reshape(-1))
