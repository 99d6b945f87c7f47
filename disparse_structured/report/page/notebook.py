"""What a notebook shows of a run: small, without a script, and readable on light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from disparse_structured.report import words
from disparse_structured.report.page import parts
from disparse_structured.report.page.run import Run
from disparse_structured.report.page.verdict import verdict

_GROUPS = 60


def report_html(run: Run) -> str:
    """The verdict, the costs, and a row for each task."""
    tiles = [[tile.label, tile.value, tile.note] for tile in parts.tiles(run)]
    headings, rows = parts.tasks_table(run)
    tasks = [[each.text for each in row] for row in rows]
    return f"<p><b>{escape(verdict(run))}</b></p>{_table(('', '', ''), tiles)}{_table(headings, tasks)}"


def plan_html(run: Run) -> str:
    """The groups that shrink, and what each task voted for."""
    shrinking = [group for group in run.groups if group.kept < group.units]
    headings, rows = parts.groups_table(run, shrinking[:_GROUPS])
    more = len(shrinking) - _GROUPS
    left = f"<p>{words.count(more)} more groups shrink.</p>" if more > 0 else ""
    said = f"{len(shrinking)} of {len(run.groups)} groups shrink"
    shown = [[each.text for each in row] for row in rows]
    return f"<p><b>{said}</b></p>{_table(headings, shown)}{left}"


def result_html(run: Run) -> str:
    """The report, and the plan folded below it."""
    return f"{report_html(run)}<details><summary>plan</summary>{plan_html(run)}</details>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in headings) if any(headings) else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(each)}</td>' for each in row)}</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"
