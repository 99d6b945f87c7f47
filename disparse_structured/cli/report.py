"""``disparse report``: a page about a saved folder, its Markdown form, and comparisons of two folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.files import PAGE, write_text
from disparse_structured.report.page.comparison import Comparison
from disparse_structured.report.page.html import diff_page, page
from disparse_structured.report.page.markdown import diff_markdown, markdown
from disparse_structured.report.page.run import Run
from disparse_structured.report.page.verdict import verdict
from disparse_structured.report.text import numbers_table


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Reads the JSON files and writes the page; no model is built, and torch is not imported."""
    runs = [Run.of_folder(Path(folder)) for folder in arguments.folders[-2:]]
    return _one(runs[0], arguments) if len(runs) == 1 else _two(Comparison(*runs), arguments)


def _one(found: Run, arguments: argparse.Namespace) -> Outcome:
    out = arguments.out
    if out is None and not arguments.markdown:
        out = Path(arguments.folders[0]) / PAGE
    if out is not None:
        write_text(out, page(found))
    document = {"page": out and str(out), "verdict": verdict(found)}
    if arguments.markdown:
        return Outcome(document, [_whole(markdown(found))])
    return Outcome(document, [Text(verdict(found)), Text(f"written to {out}")])


def _two(found: Comparison, arguments: argparse.Namespace) -> Outcome:
    if arguments.out is not None:
        write_text(arguments.out, diff_page(found))
    figures = [
        dict(zip(("figure", "first", "second", "change"), row, strict=True)) for row in found.figures()
    ]
    settings = [dict(zip(("setting", "first", "second"), row, strict=True)) for row in found.settings()]
    document = {
        "page": arguments.out and str(arguments.out),
        "verdict": found.verdict,
        "figures": figures,
        "settings": settings,
    }
    if arguments.markdown:
        return Outcome(document, [_whole(diff_markdown(found))])
    written = [] if arguments.out is None else [Text(f"written to {arguments.out}")]
    return Outcome(document, [*_tables(found), Text(found.verdict), *written])


def _tables(found: Comparison) -> list[RenderableType]:
    figures = numbers_table(*found.headings("figure"))
    for row in found.figures():
        figures.add_row(*map(Text, row))
    settings = numbers_table("setting that differs", *found.names)
    for row in found.settings():
        settings.add_row(*map(Text, row))
    return [figures, settings] if settings.row_count else [figures]


def _whole(text: str) -> Text:
    """Lines that a terminal must not wrap."""
    return Text(text.rstrip("\n"), no_wrap=True, overflow="ignore")
