"""What a command prints, and where: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from disparse_structured import progress
from disparse_structured.errors import DisparseWarning
from disparse_structured.report.schemas import document_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_UNLIMITED = 10_000
"""Columns of output that no terminal shows: tables are as wide as they need to be."""


@dataclass(frozen=True)
class Outcome:
    """A command's result, as JSON and for people; ``status`` is the exit code."""

    document: Mapping[str, Any]
    views: Sequence[RenderableType]
    status: int = 0


class Screen:
    """Standard output and standard error of one command.

    With ``as_json`` standard output takes exactly one JSON document, and what the user's own code prints goes
    to standard error, as does progress, unless ``quiet``.
    """

    def __init__(self, as_json: bool, quiet: bool = False) -> None:
        self._as_json = as_json
        self._stdout = sys.stdout
        self.progress = not quiet
        progress.begin()

    def step(self, text: str) -> AbstractContextManager[None]:
        """Shows ``text`` while the body runs."""
        return progress.step(text, self.progress)

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Keeps standard output free for the JSON document, if there will be one."""
        with contextlib.redirect_stdout(sys.stderr) if self._as_json else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Shows the warnings of this package as one line each, without the place in its code."""

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DisparseWarning):
                self.say(f"disparse: warning: {message}")
            else:
                usual(message, category, *where, **more)

        with warnings.catch_warnings():
            usual = warnings.showwarning
            warnings.showwarning = show
            yield

    def say(self, text: str) -> None:
        """A line on standard error."""
        print(text, file=sys.stderr, flush=True)

    def show(self, outcome: Outcome) -> None:
        """The result, on standard output."""
        if self._as_json:
            self._write(outcome.document)
            return
        console = _console(file=self._stdout)
        if not console.is_terminal:
            console = _console(file=self._stdout, width=_UNLIMITED)
        for view in outcome.views:
            console.print(view)

    def interrupted(self) -> None:
        """The answer to Ctrl-C."""
        self.say("disparse: interrupted")

    def fail(self, kind: str, message: str) -> None:
        """An error of class ``kind``, on standard error, and as the JSON document if there is to be one."""
        self.say(f"disparse: error: {message}")
        if self._as_json:
            self._write({"error": {"type": kind, "message": message}})

    def _write(self, document: Mapping[str, Any]) -> None:
        print(document_text(document), file=self._stdout, flush=True)


def _console(**settings: Any) -> Console:
    from rich.console import Console  # imported late: help and refused arguments do without it

    return Console(highlight=False, **settings)
