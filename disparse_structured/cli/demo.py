"""``disparse demo``: the whole flow on rendered scenes."""

from __future__ import annotations

import argparse
from pathlib import Path

from disparse_structured.cli.console import Outcome, Screen


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Trains, prunes, fine-tunes, exports and compares a small network."""
    from disparse_structured.lab import demo as room  # brings timm and matplotlib, which only this one needs

    result = room.run(
        Path(arguments.out), seed=arguments.seed, quick=arguments.quick, progress=screen.interactive
    )
    return Outcome(result.to_dict(), [result])
