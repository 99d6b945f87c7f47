"""What a command prints, and where: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

_UNLIMITED = 10_000
"""Columns of a table that no terminal shows: as many as it takes."""


@dataclass(frozen=True)
class Outcome:
    """A command's result: once as JSON, once for people."""

    document: Mapping[str, Any]
    views: Sequence[RenderableType]


class Screen:
    """Standard output and standard error of one command.

    With ``as_json`` standard output takes exactly one JSON document; what the user's own code prints
    meanwhile goes to standard error. Standard error shows progress only where it is a terminal.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._stdout = sys.stdout
        self._stderr = Console(stderr=True, highlight=False)

    @property
    def interactive(self) -> bool:
        """Whether anybody is watching standard error."""
        return sys.stderr.isatty()

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A spinner while the body runs."""
        if not self.interactive:
            yield
            return
        with self._stderr.status(text):
            yield

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Keeps standard output free for the document, where there is to be one."""
        with contextlib.redirect_stdout(sys.stderr) if self._as_json else contextlib.nullcontext():
            yield

    def say(self, text: str) -> None:
        """A line of news, on standard error."""
        self._stderr.print(text, markup=False, soft_wrap=True)

    def show(self, outcome: Outcome) -> None:
        """The result, on standard output."""
        if self._as_json:
            self._write(outcome.document)
            return
        console = Console(file=self._stdout, highlight=False)
        if not console.is_terminal:
            console = Console(file=self._stdout, highlight=False, width=_UNLIMITED)
        for view in outcome.views:
            console.print(view)

    def interrupted(self) -> None:
        """What Ctrl-C leaves to say."""
        self._stderr.print("disparse: interrupted")

    def fail(self, error: Exception) -> None:
        """An error that its message explains, on standard error, and as the document."""
        self._stderr.print(f"disparse: error: {error}", markup=False, soft_wrap=True)
        if self._as_json:
            self._write({"error": {"type": type(error).__name__, "message": str(error)}})

    def _write(self, document: Mapping[str, Any]) -> None:
        print(json.dumps(document, indent=2, sort_keys=True), file=self._stdout, flush=True)
