"""Which units a name pattern protects."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from disparse_structured.errors import OptionError, PatternError
from disparse_structured.structure.groups import ChannelGroup


def protected_units(groups: Sequence[ChannelGroup], patterns: Sequence[str | nn.Module]) -> torch.Tensor:
    """Bool ``[units]``: the units of the groups that a pattern matches."""
    mask = torch.zeros(sum(group.units for group in groups), dtype=torch.bool)
    for pattern in patterns:
        for group in matching(groups, pattern, "protected"):
            mask[group.slice] = True
    return mask


def matching(groups: Sequence[ChannelGroup], pattern: str | nn.Module, option: str) -> list[ChannelGroup]:
    """List the groups that ``pattern`` matches; ``option`` is the budget's option that holds it.

    Raises:
        PatternError: no group matches.
        OptionError: ``pattern`` is a module.
    """
    if not isinstance(pattern, str):
        raise OptionError(
            f"{option} holds a module ({type(pattern).__name__}), whose name only prune() knows. "
            "Use budget.named(model)."
        )
    names = [_names(group, produced=option == "shares") for group in groups]
    matched = [g for g, own in zip(groups, names, strict=True) if any(fnmatchcase(n, pattern) for n in own)]
    if not matched:
        everything = sorted(set().union(*names))
        close = difflib.get_close_matches(pattern.strip("*."), everything, n=3, cutoff=0.4)
        hint = f"Close names: {', '.join(close)}." if close else "`disparse inspect` lists the names."
        what = "protected pattern" if option == "protected" else f"pattern of {option}"
        raise PatternError(
            f"the {what} {pattern!r} matches no channel group, and no parameter or module that belongs to "
            f"one (pinned layers need no protection). {hint}"
        )
    return matched


def _names(group: ChannelGroup, produced: bool) -> set[str]:
    """The names that match the group: its own, those of its parameters, and of the modules that hold them.

    With ``produced``, only parameters of layers that output the units count.
    """
    found = {group.name}
    for member in group.members:
        if produced and member.reads:
            continue
        parts = member.parameter.split(".")
        found.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return found
