"""Numbers and tables in Markdown, and blocks of a page that is partly written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.harness.files import write_text

NONE = "–"
"""Stands for a missing number."""


def number(value: float, digits: int) -> str:
    """With a plain minus, and without a negative zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, followed by the sample standard deviation where there are several values."""
    mean = number(statistics.fmean(values), digits)
    return mean if len(values) == 1 else f"{mean} ± {number(statistics.stdev(values), digits)}"


def percent(share: float | None) -> str:
    """A share in percent, or :data:`NONE`."""
    return NONE if share is None else f"{share:.1%}"


def times(factor: float | None) -> str:
    """A ratio, or :data:`NONE`."""
    return NONE if factor is None else f"{factor:.2f} ×"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table whose first column is left-aligned, and the others right-aligned."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def sections(heading: str, words: str, tables: Iterable[tuple[str, str]]) -> str:
    """A heading, a paragraph, and each table under its own heading one level below."""
    return "\n\n".join(
        [f"## {heading}", words, *(part for title, table in tables for part in (f"### {title}", table))]
    )


def place(path: Path, name: str, content: str, opening: str, writer: str) -> None:
    """Writes ``content`` between the markers of ``name`` in a page; the rest of the page stays as it is.

    A page that does not exist begins with ``opening``; ``writer`` is the module that the markers name.

    Raises:
        ValueError: the page has the first marker, but not the second one after it.
    """
    begin, end = f"<!-- {name}: written by {writer} -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else opening.rstrip() + "\n"
    block = f"{begin}\n\n{content.strip()}\n\n{end}"
    if begin in text:
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{path} has the line {begin!r}, but not {end!r} after it. Put that line back.")
        text = before + block + after
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    write_text(path, text)
