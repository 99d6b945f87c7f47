"""Rows: what running one cell of a benchmark gave, each a dataclass in one JSON file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

RowT = TypeVar("RowT")


class RowError(Exception):
    """A row's file is not what it should be."""


def write(path: Path, row: Any) -> None:
    """Writes a row, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(row), indent=1, ensure_ascii=False) + "\n"
    # Renamed when complete: whoever kills the run finds whole rows only.
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read(path: Path, kind: type[RowT], cell: type) -> RowT:
    """The row in ``path``, whose field ``cell`` is one; :class:`RowError` where there is none in it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in _names(kind) if name not in data]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return kind(**{**data, "cell": cell(**data["cell"])})
    except (ValueError, TypeError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise RowError(f"{path} is no row ({error}): delete the file, and the cell is run again.") from error


def digest(*settings: Any) -> str:
    """16 hex digits over all that decides a row: anything that JSON takes."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _names(kind: Any) -> list[str]:
    return [each.name for each in fields(kind)]
