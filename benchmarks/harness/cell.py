"""Cells: the units of work of a benchmark. Each is run once and gives one row."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Protocol


class Cell(Protocol):
    """A frozen dataclass of plain values that say what to run."""

    @property
    def label(self) -> str:
        """Its name in logs and on pages; no other cell of the same shelf has it."""
        ...


def digest(*settings: Any) -> str:
    """16 hexadecimal digits that identify settings of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def described(choice: object) -> str:
    """The class and settings of a criterion, an arbiter or a method; the same text in every process."""
    text = choice.__name__ if isinstance(choice, type) else repr(choice)
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", re.sub(r" object at 0x[0-9a-f]+", "", text))
