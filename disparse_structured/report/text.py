"""How reports look: tables, and plain text of what the console would show."""

from __future__ import annotations

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table


def numbers_table(subject: str, *headings: str) -> Table:
    """An empty table: the ``subject`` on the left, and columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(subject)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def plain_text(shown: RenderableType, width: int = 100) -> str:
    """What a console of ``width`` columns shows of ``shown``, without colors."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()
