"""``disparse images``: the pictures of a folder as a network would see them, side by side in one file."""

from __future__ import annotations

import argparse

from rich.text import Text

from disparse_structured.cli import sources
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.data import load_images


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Draws the first inputs."""
    with screen.step("reading the pictures"):
        model = sources.load_model(arguments.model) if arguments.model else None
        data = load_images(arguments, model)
        sheet = data.contact_sheet(arguments.sheet, arguments.number)
    facts = data.facts()
    lines = [f"{facts['inputs']} inputs: {data.preprocessing}"]
    if data.skipped:
        lines.append(f"skipped: {'; '.join(f'{name} ({why})' for name, why in data.skipped.items())}")
    lines.append(f"drawn: {sheet}")
    return Outcome({**facts, "sheet": str(sheet)}, [Text("\n".join(lines))])
