"""Measured times on disk: one file for each machine, runtime and setting, one line for each operation.

Lines are appended as they are measured, so that a run that was stopped resumes. Another version, processor or
number of threads is another file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Widths = tuple[int, int]
"""How many channels an operation reads and makes."""


def cache_folder() -> Path:
    """Where tables are kept: ``disparse-structured/latency`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "disparse-structured", "latency")


class Table:
    """Milliseconds by operation and widths, for one set of facts about runtime and machine.

    Args:
        facts: everything that times depend on besides the operation, as
            :attr:`~disparse_structured.latency.runtime.Runtime.facts`.
        folder: where it is kept, :func:`cache_folder` by default.
    """

    def __init__(self, facts: Mapping[str, str], folder: Path | None = None) -> None:
        text = json.dumps(dict(facts), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.facts = dict(facts)
        self.path = (folder or cache_folder()) / f"{digest}.jsonl"
        self._times: dict[str, dict[Widths, float]] = defaultdict(dict)
        for line in self._lines():
            self._times[line["operation"]] |= {(read, made): ms for read, made, ms in line["times"]}

    def __len__(self) -> int:
        return sum(map(len, self._times.values()))

    def times(self, operation: str) -> Mapping[Widths, float]:
        """What is known about ``operation``."""
        return self._times.get(operation, {})

    def add(self, operation: str, times: Mapping[Widths, float]) -> None:
        """Remembers ``times``, here and on disk."""
        self._times[operation] |= times
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"operation": operation, "times": [[*widths, ms] for widths, ms in times.items()]}
        start = "" if self.path.exists() else json.dumps({"facts": self.facts}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{start}{json.dumps(line)}\n")

    def clear(self) -> None:
        """Forgets everything, here and on disk."""
        self._times.clear()
        self.path.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines of the file; one that was cut off is not read."""
        try:
            texts = self.path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return []
        if texts[-1]:  # the next line must not continue the one that was cut off
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")
        found = []
        for text in texts:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if "operation" in line:
                found.append(line)
        return found
