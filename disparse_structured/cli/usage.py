"""A parser that raises its errors, and hints for misspelled names."""

from __future__ import annotations

import argparse
import difflib
import pickle
from collections.abc import Iterable
from typing import NoReturn

from disparse_structured.errors import DisparseError


class UsageError(DisparseError):
    """The command line names something that does not exist or has the wrong type."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors raised instead of printed, so that ``--json`` covers them too."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UsageError`."""
        raise UsageError(f"{message}. `{self.prog} --help` lists the options.")


def suggestion(name: str, known: Iterable[str], what: str) -> str:
    """A hint for a misspelled ``name``: the closest known names, else all of them."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    if not names:
        return f"No {what} was found."
    listed = ", ".join(map(repr, names[:8]))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"Known names: {listed}{more}."


def reason(error: BaseException) -> str:
    """The class of ``error`` and the first line of its message.

    What ``torch.load`` says about pickles is left out: it advises to run the code that they hold.
    """
    lines = [] if isinstance(error, pickle.UnpicklingError) else str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
