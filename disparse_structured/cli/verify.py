"""``disparse verify``: whether a saved folder is intact and its model computes what was stored."""

from __future__ import annotations

import argparse
import dataclasses

from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.folders import Folder
from disparse_structured.pipeline.checking import check_folder

FAILED = 1
"""The exit code if a check failed."""


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Checks the folder; nothing is written."""
    folder = Folder(arguments)
    with screen.step("checking the folder"):
        if arguments.model is None:
            found = check_folder(folder.path)
        else:
            dense = folder.dense
            found = check_folder(
                folder.path,
                lambda: dense,
                tasks=folder.given_tasks,
                entry_points=folder.entry_points,
                inputs=folder.check_inputs(dense),
            )
    document = {
        "folder": str(folder.path),
        "passed": found.passed,
        "checks": [dataclasses.asdict(check) for check in found.checks],
    }
    return Outcome(document, [found], status=0 if found.passed else FAILED)
