"""Which units a name pattern protects."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

import torch

from disparse_structured.errors import PatternError
from disparse_structured.structure.groups import ChannelGroup


def protected_units(groups: tuple[ChannelGroup, ...], patterns: tuple[str, ...]) -> torch.Tensor:
    """Bool ``[units]``: the units of the groups that a pattern matches."""
    names = [_names(group) for group in groups]
    mask = torch.zeros(sum(group.units for group in groups), dtype=torch.bool)
    for pattern in patterns:
        matched = [
            g for g, own in zip(groups, names, strict=True) if any(fnmatchcase(n, pattern) for n in own)
        ]
        if not matched:
            everything = sorted(set().union(*names))
            close = difflib.get_close_matches(pattern.strip("*."), everything, n=3, cutoff=0.4)
            hint = f"Close names: {', '.join(close)}." if close else "`disparse inspect` lists the names."
            raise PatternError(
                f"the protected pattern {pattern!r} matches no channel group, and no parameter or module "
                f"that belongs to one (pinned layers need no protection). {hint}"
            )
        for group in matched:
            mask[group.slice] = True
    return mask


def _names(group: ChannelGroup) -> set[str]:
    """What a pattern may call the group: its name, its parameters, and the modules they lie in."""
    found = {group.name}
    for member in group.members:
        parts = member.parameter.split(".")
        found.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return found
