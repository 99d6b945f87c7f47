"""The page of a run: one HTML file that loads nothing."""

from __future__ import annotations

import base64
import functools
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from disparse_structured.errors import LoadError
from disparse_structured.report import words
from disparse_structured.report.page import charts, parts
from disparse_structured.report.page.comparison import Comparison
from disparse_structured.report.page.run import PLAN, REPORT, Group, Run
from disparse_structured.report.page.verdict import verdict
from disparse_structured.report.schemas import document_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from disparse_structured.report.page.pictures import DrawnExample, Example
LARGEST = 1_000_000
"""Bytes of the largest page."""

_ROWS = (800, 400, 200, 100, 50)
"""How many rows a table has at most; fewer if the page would be too large."""

_PLAIN, _PACKED = 60_000, 200_000
"""Bytes up to which a file is put into the page as it is, and compressed."""

_SECTIONS = (
    ("tasks", "Tasks"),
    ("pictures", "Pictures"),
    ("time", "Time"),
    ("widths", "Widths"),
    ("votes", "Votes"),
    ("overlap", "Agreement"),
    ("left", "Left alone"),
    ("checks", "Checks"),
    ("repeat", "Repeat"),
)


@dataclass(frozen=True)
class Download:
    """A file inside the page."""

    name: str
    href: str
    size: str


def page(run: Run, examples: Sequence[Example] = ()) -> str:
    """The text of the page of ``run``, smaller than :data:`LARGEST`, with ``examples`` drawn as pictures.

    Raises:
        LoadError: even the shortest page is larger, because names or texts are huge.
    """
    pictures: Sequence[DrawnExample] = ()
    if examples:
        from disparse_structured.report.page.pictures import drawn  # imports NumPy

        pictures = drawn(examples)
    for most in _ROWS:
        text = _page(run, most, pictures)
        if len(text.encode()) < LARGEST:
            return text
    raise LoadError(
        f"a page about {run.name!r} would be larger than {words.size(LARGEST)}: its names or texts are huge. "
        f"Read {REPORT} instead."
    )


def _page(run: Run, most: int, pictures: Sequence[DrawnExample]) -> str:
    report, groups = run.report, _largest(run.groups, most)
    task_headings, task_rows = parts.tasks_table(run)
    group_headings, group_rows = parts.groups_table(run, groups)
    left, refit = parts.left_alone(run), parts.refit_rows(run)
    times, int8_times = parts.intervals(run), parts.int8_intervals(run)
    content = {
        "run": run,
        "tasks": run.tasks,
        "verdict": verdict(run),
        "tiles": parts.tiles(run),
        "method": report.get("method"),
        "deviation": report.get("deviation"),
        "trained": bool({"training", "demo", "weights_changed"} & report.keys()),
        "pictures": pictures,
        "task_headings": task_headings,
        "task_rows": task_rows,
        "columns_lines": parts.columns_lines(run),
        "times": times,
        "times_chart": charts.intervals_chart(times) if times else None,
        "how_timed": _how_timed(run),
        "speed": report.get("speed"),
        "stairs": [(stair, charts.stairs_chart(stair)) for stair in parts.stairs(run)],
        "int8_times": int8_times,
        "int8_chart": charts.intervals_chart(int8_times) if int8_times else None,
        "int8_timed": parts.how_timed(report["int8"]["latency"]) + "." if int8_times else "",
        "groups": groups,
        "all_groups": len(run.groups),
        "changed": sum(group.kept < group.units for group in run.groups),
        "widths_chart": charts.widths_chart(groups) if groups else None,
        "group_headings": group_headings,
        "group_rows": group_rows,
        "more_groups": len(run.groups) - len(groups),
        "overlap": parts.overlap(run),
        "left": left[:most],
        "more_left": max(0, len(left) - most),
        "notes": parts.notes(run),
        "verification": _checked(run),
        "check_rows": parts.verification_rows(run),
        "refit_rows": refit[:most],
        "command": parts.command(run),
        "settings": parts.settings(run),
        "downloads": _downloads(run),
    }
    shown = {**content, "sections": _sections(content), **_frame()}
    return environment().get_template("page.html").render(shown)


def has_pictures(text: str) -> bool:
    """Whether ``text``, which :func:`page` returned, shows inputs and outputs as pictures."""
    return '<section id="pictures"' in text


def diff_page(found: Comparison) -> str:
    """The text of the page that compares two runs."""
    differing = found.widths()
    rows = [
        [
            parts.Cell(one.name, one.name),
            *(parts.Cell(words.count(width), width) for width in (one.units, one.kept, other.kept)),
            parts.Cell(words.percent(agreed), agreed, heat=agreed),
        ]
        for one, other, agreed in differing[: _ROWS[0]]
    ]
    groups = [_largest(run.groups, _ROWS[1]) for run in (found.first, found.second)]
    drawn = [charts.widths_chart(each) if each else None for each in groups]
    settings = [
        [parts.Cell(name), *(parts.Cell(text, text) for text in pair)] for name, *pair in found.settings()
    ]
    sections = [("figures", "Figures")]
    sections += [("widths", "Widths")] * any(drawn) + [("groups", "Groups")] * bool(rows)
    shown = {
        "found": found,
        "names": found.names,
        "figures": [[parts.Cell(text) for text in row] for row in found.figures()],
        "verdicts": (verdict(found.first), verdict(found.second)),
        "chart_first": drawn[0],
        "chart_second": drawn[1],
        "group_rows": rows,
        "more_groups": max(0, len(differing) - _ROWS[0]),
        "settings": settings,
        "sections": [*sections, ("settings", "Settings")],
    }
    return environment().get_template("diff.html").render({**shown, **_frame()})


@functools.cache
def environment() -> Environment:
    """Templates that escape everything, and fail on a name that does not exist."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("disparse_structured.report.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["breakable"] = _breakable
    found.globals.update(
        percent=words.percent, share=words.share, tiny=words.tiny, milliseconds=words.milliseconds
    )
    return found


def _breakable(name: str) -> Markup:
    """A module's name, which may be broken after its dots."""
    from markupsafe import Markup, escape

    return Markup(".<wbr>").join(escape(part) for part in name.split("."))


def _frame() -> dict[str, Any]:
    from markupsafe import Markup

    files = resources.files(__package__)
    return {
        "version": version("disparse-structured"),
        "style": Markup(files.joinpath("style.css").read_text(encoding="utf-8")),
        "script": Markup(files.joinpath("script.js").read_text(encoding="utf-8")),
    }


def _sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    shown = {
        "pictures": content["pictures"],
        "time": content["times"] or content["int8_times"],
        "widths": content["groups"],
        "votes": content["groups"],
        "overlap": content["overlap"],
        "left": content["left"] or content["notes"],
    }
    return [(name, label) for name, label in _SECTIONS if shown.get(name, True)]


def _checked(run: Run) -> dict[str, Any] | None:
    found = run.report.get("verification")
    return found and {"dtype": None, "tolerance": None, "beyond": [], **found}


def _how_timed(run: Run) -> str:
    latency, speed = run.report.get("latency"), run.report.get("speed")
    if latency is not None:
        return f"{parts.how_timed(latency)}."
    if speed is not None:
        where = ", ".join(str(value) for name, value in speed["runtime"].items() if name != "threads")
        threads = f", threads: {speed['runtime']['threads']}" if "threads" in speed["runtime"] else ""
        return f"{speed['rounds']} rounds of both files in turn, {where}{threads}."
    return ""


def _largest(groups: Sequence[Group], most: int) -> Sequence[Group]:
    """The ``most`` groups that lost the most units, in their order."""
    chosen = sorted(range(len(groups)), key=lambda place: groups[place].kept - groups[place].units)[:most]
    return [groups[place] for place in sorted(chosen)]


def _downloads(run: Run) -> list[Download]:
    texts = [(PLAN, None if run.plan is None else run.plan_text)]
    texts.append((REPORT, document_text(run.report)))
    return [found for name, text in texts if text is not None for found in [_download(name, text)] if found]


def _download(name: str, text: str) -> Download | None:
    data, kind = (text + "\n").encode(), "application/json"
    if len(data) > _PLAIN:
        name, data, kind = f"{name}.gz", gzip.compress(data, mtime=0), "application/gzip"
    if len(data) > _PACKED:
        return None
    return Download(name, f"data:{kind};base64,{base64.b64encode(data).decode()}", words.size(len(data)))
