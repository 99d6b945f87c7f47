"""The parts that the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.data import DataError
from benchmarks.harness.row import RowError


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """An empty command line for ``python -m benchmarks.<module>``; the description is shown as it is."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as 0.7")
    return value


def status(run: Callable[[], Path], *refusals: type[Exception]) -> int:
    """Runs a command that writes a page, and gives its exit status.

    Missing data, damaged rows and ``refusals`` are reported on standard error, without a traceback.
    """
    expected: list[type[Exception]] = [DataError, RowError, *refusals]
    try:
        written = run()
    except tuple(expected) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    print(f"written to {written}", flush=True)
    return 0
