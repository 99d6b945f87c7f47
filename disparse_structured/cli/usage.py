"""What is wrong with a command line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn

from disparse_structured.errors import DisparseError


class UsageError(DisparseError):
    """The command line names something that does not exist, or that is not what it should be."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors raised instead of printed, so that ``--json`` holds for them too."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UsageError`."""
        raise UsageError(f"{message}. `{self.prog} --help` lists the options.")


def suggestion(name: str, known: Iterable[str], what: str) -> str:
    """A sentence that helps whoever wrote ``name``: close names, or all there is, or that there is none."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    if not names:
        return f"There is no {what} at all."
    listed = ", ".join(map(repr, names[:8]))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"There is {listed}{more}."
