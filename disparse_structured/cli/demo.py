"""``disparse demo``: training, pruning, fine-tuning and export on rendered scenes."""

from __future__ import annotations

import argparse

from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.lab import demo as lab_demo


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Trains, prunes, fine-tunes, exports and compares a small network."""
    result = lab_demo.run(arguments.out, seed=arguments.seed, quick=arguments.quick, progress=screen.progress)
    return Outcome(result.to_dict(), [result])
