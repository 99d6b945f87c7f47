"""A run, or a comparison of two, as Markdown: a line and a short table, for a comment or a job summary."""

from __future__ import annotations

from collections.abc import Sequence

from disparse_structured.report.page.comparison import Comparison
from disparse_structured.report.page.parts import Cell, tasks_table
from disparse_structured.report.page.run import Run
from disparse_structured.report.page.verdict import verdict

_ESCAPED = {ord(letter): f"\\{letter}" for letter in "\\`*_[]|~"}
_ESCAPED |= {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("@"): "&#64;", ord("#"): "&#35;"}
_ESCAPED |= {ord("\n"): " ", ord("\r"): " "}


def markdown(run: Run) -> str:
    """The verdict of ``run``, and a row for each task."""
    headings, rows = tasks_table(run)
    versions = ", ".join(f"{name} {value}" for name, value in run.report.get("versions", {}).items())
    made = " · ".join(part for part in (f"plan {run.report['plan'][:12]}", versions) if part)
    return f"**{escaped(verdict(run))}**\n\n{_table(headings, rows)}\n\n<sub>{escaped(made)}</sub>\n"


def diff_markdown(found: Comparison) -> str:
    """The figures of two runs, and by how much they differ."""
    rows = [[Cell(text) for text in row] for row in found.figures()]
    return f"**{escaped(found.verdict)}**\n\n{_table(found.headings(''), rows)}\n"


def escaped(text: str) -> str:
    r"""``text`` without a meaning in Markdown: no markup, mentions or links to issues.

    >>> escaped("<b>_x_ @you #1")
    '&lt;b&gt;\\_x\\_ &#64;you &#35;1'
    """
    return text.translate(_ESCAPED)


def _table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)]]
    shown = [f"| {' | '.join(escaped(each) for each in lines[0])} |", f"| {' | '.join(lines[1])} |"]
    shown += [f"| {' | '.join(escaped(each.text) for each in row)} |" for row in rows]
    return "\n".join(shown)
