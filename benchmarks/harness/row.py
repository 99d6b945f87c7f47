"""Rows: what running a cell gave. A shelf keeps the rows of one table in a JSONL file, one row a line."""

from __future__ import annotations

import fcntl
import json
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from benchmarks.harness.cell import Cell
from benchmarks.harness.files import ROOT, write_text

REASON = 400
"""How many characters of an error are kept."""


class Row(Protocol):
    """A frozen dataclass of plain values, one of which is the cell."""

    @property
    def cell(self) -> Cell:
        """The cell that was run."""
        ...


RowT = TypeVar("RowT", bound=Row)


class RowError(Exception):
    """A line of a shelf is not a row."""


def encode(row: Row) -> str:
    """The row as one line of JSON, without the line break."""
    return json.dumps(asdict(row), ensure_ascii=False)  # type: ignore[call-overload]  # rows are dataclasses


def decode(text: str, kind: type[RowT], cell: type) -> RowT:
    """The row of class ``kind`` in a line of JSON.

    Raises:
        ValueError: the text is not JSON, or a field is missing.
        TypeError: the text has other fields.
    """
    data = json.loads(text)
    missing = [each.name for each in fields(kind) if each.name not in data]  # type: ignore[arg-type]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return kind(**{**data, "cell": cell(**data["cell"])})


@dataclass(frozen=True)
class Shelf(Generic[RowT]):
    """The finished rows of one table, sorted by the labels of their cells.

    Several processes may put rows at the same time, and may be killed at any time: the file is replaced as a
    whole, under a lock.

    Args:
        path: the JSONL file; it need not exist.
        kind: the class of the rows.
        cell: the class of their cells.
    """

    path: Path
    kind: type[RowT]
    cell: type

    def rows(self) -> list[RowT]:
        """All rows, in the order of the file.

        Raises:
            RowError: a line is not a row.
        """
        return [self._row(number, line) for number, line in enumerate(self._lines(), 1)]

    def by_label(self) -> dict[str, RowT]:
        """All rows under the labels of their cells; raises as :meth:`rows` does."""
        return {row.cell.label: row for row in self.rows()}

    def put(self, row: RowT) -> None:
        """Keeps a row, in place of the one that the cell had; raises as :meth:`rows` does."""
        with _locked(self.path.parent):
            lines = dict(zip(self.by_label(), self._lines(), strict=True))
            lines[row.cell.label] = encode(row)
            write_text(self.path, "".join(f"{lines[label]}\n" for label in sorted(lines)))

    def _lines(self) -> list[str]:
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        return text.removesuffix("\n").split("\n") if text else []

    def _row(self, number: int, line: str) -> RowT:
        try:
            return decode(line, self.kind, self.cell)
        except (ValueError, TypeError) as error:
            raise RowError(
                f"{self.path}, line {number}, is not a row ({error}). Delete it, and its cell is run again."
            ) from error


def reason(error: BaseException) -> str:
    """What a row says about an exception: its class and message."""
    return shortened(f"{type(error).__name__}: {error}")


def shortened(text: str) -> str:
    """The text on one line, cut after :data:`REASON` characters, with files named as on any machine."""
    for place in (sysconfig.get_paths()["purelib"], str(ROOT)):
        text = text.replace(f"{place}{os.sep}", "")
    line = " ".join(text.split())
    return line if len(line) <= REASON else f"{line[:REASON]}…"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes and threads that call this out of ``folder``, which is created if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
