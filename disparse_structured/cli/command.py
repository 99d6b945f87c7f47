"""The ``disparse`` command: parses, runs, and turns errors into exit codes.

Help, the version and refused arguments are answered without importing torch: a command's module is imported
only once its arguments have been checked.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from disparse_structured.cli import advice, checks
from disparse_structured.cli.console import Screen
from disparse_structured.cli.locking import alone_in, first_process
from disparse_structured.cli.parsers import build_parser
from disparse_structured.cli.settings import readable, save_settings, with_settings
from disparse_structured.errors import DisparseError

_WRITERS = ("prune", "train", "relate", "demo", "export", "bench", "finetune")
"""The commands that write a folder."""

FAILED, INTERRUPTED, UNREAD = 2, 130, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    It is 0 for success, 1 if `disparse verify` finds a fault, 2 for an explained error, and 130 for Ctrl-C.

    An unexpected exception is a bug of this package and is not caught.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Needed before parsing: a parsing error is printed as a document too.
    screen = Screen(as_json="--json" in argv, quiet="--quiet" in argv)
    try:
        parser = build_parser()
        arguments = parser.parse_args(with_settings(argv, parser))
        arguments.words = list(map(readable, argv))
        checks.check(arguments)
        if getattr(arguments, "save_settings", None) is not None:
            save_settings(arguments, parser)
            return 0
        with screen.reserved(), screen.warnings(), _alone(arguments):
            outcome = importlib.import_module(f"{__package__}.{arguments.command}").run(arguments, screen)
        if outcome is not None:
            screen.show(outcome)
            return outcome.status  # type: ignore[no-any-return]  # the command's module is imported by name
    except DisparseError as error:
        screen.fail(type(error).__name__, advice.in_options(str(error)))
        return FAILED
    except KeyboardInterrupt:
        screen.interrupted()
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output has closed it; the interpreter must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    return 0


def _alone(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """Locks the folder that the command writes; of several processes, the first one does."""
    folder = getattr(arguments, "out", None) or getattr(arguments, "folder", None)
    if folder is None or arguments.command not in _WRITERS or not first_process():
        return nullcontext()
    return alone_in(Path(folder))
