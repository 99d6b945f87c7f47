"""``disparse report``: a page about a saved folder, its Markdown form, and comparisons of two folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from disparse_structured.report.page.pictures import Example


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Reads the JSON files and writes the page. Unless inputs are to be shown, torch is not imported."""
    runs = [Run.of_folder(Path(folder)) for folder in arguments.folders[-2:]]
    return _one(runs[0], arguments, screen) if len(runs) == 1 else _two(Comparison(*runs), arguments)


def _one(found: Run, arguments: argparse.Namespace, screen: Screen) -> Outcome:
    out = arguments.out
    if out is None and not arguments.markdown:
        out = Path(arguments.folders[0]) / PAGE
    if out is not None:
        write_text(out, page(found, _examples(arguments, screen)))
    document = {"page": out and str(out), "verdict": verdict(found)}
    if arguments.markdown:
        return Outcome(document, [_whole(markdown(found))])
    return Outcome(document, [Text(verdict(found)), Text(f"written to {out}")])


def _examples(arguments: argparse.Namespace, screen: Screen) -> Sequence[Example]:
    """The inputs to show, with the outputs of both networks; none unless they are asked for."""
    if arguments.model is None:
        return ()
    from disparse_structured.cli.examples import shown_examples  # imports torch

    arguments.folder = arguments.folders[0]
    with screen.step("running both networks on the first inputs"):
        return shown_examples(arguments)


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
