"""What the entry points share: checked choices, and what somebody who watches sees."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console

from disparse_structured.errors import PlanError
from disparse_structured.structure import Form


def check_callables(**choices: object) -> None:
    """Raises :class:`PlanError` for the first of ``choices`` that is neither None nor can be called."""
    for name, choice in choices.items():
        if choice is not None and not callable(choice):
            raise PlanError(
                f"{name}={choice!r} is no {name}: it cannot be called. Pass an object, such as Fisher(), "
                "Unanimous() or PerCostRanking(), or a callable of that signature."
            )


def check_method(refit: object) -> None:
    """Raises :class:`PlanError` unless ``refit`` is None or a method of refitting."""
    if refit is not None and (isinstance(refit, type) or not callable(getattr(refit, "visit", None))):
        raise PlanError(
            f"refit={refit!r} is no way to refit. Pass an object, such as LeastSquares() of "
            "disparse_structured.refit, or None to leave the weights that stay as they are."
        )


def check_place(form: Form, inplace: bool) -> None:
    """Raises :class:`PlanError` where the result is to take the place of a model and cannot."""
    if form == "graph" and inplace:
        raise PlanError(
            "inplace=True and form='graph': a pruned graph is another module than the model and cannot take "
            "its place. Use the model of what is returned."
        )


@contextlib.contextmanager
def step(text: str, progress: bool) -> Iterator[None]:
    """A spinner on standard error while the body runs, where somebody is watching."""
    if progress and sys.stderr.isatty():
        with Console(stderr=True).status(text):
            yield
    else:
        yield
