"""Text of what the console would show."""

from __future__ import annotations

from rich.console import Console, RenderableType


def plain_text(shown: RenderableType, width: int = 100) -> str:
    """What a console of ``width`` columns shows of ``shown``, without colors."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()
