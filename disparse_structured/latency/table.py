"""Measured times on disk: one file for each machine, runtime and setting, one line for each operation.

Lines are appended as they are measured, so that a run that was stopped resumes. Another version, processor or
number of threads is another file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from disparse_structured.errors import OptionError

Widths = tuple[int, int]
"""How many channels an operation reads and makes."""

_PROTOCOL = 2
"""How operations are measured. Times that were measured otherwise are in other files."""


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

    Raises:
        OptionError: the file cannot be read.
    """

    def __init__(self, facts: Mapping[str, str], folder: Path | None = None) -> None:
        text = json.dumps({**facts, "protocol": _PROTOCOL}, sort_keys=True)
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
        """Remembers ``times``, here and on disk.

        Raises:
            OptionError: the file cannot be written.
        """
        self._times[operation] |= times
        line = {"operation": operation, "times": [[*widths, ms] for widths, ms in times.items()]}
        with self._usable():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            start = "" if self.path.exists() else json.dumps({"facts": self.facts}) + "\n"
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{start}{json.dumps(line)}\n")

    def clear(self) -> None:
        """Forgets everything, here and on disk."""
        self._times.clear()
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OptionError(
                f"measured times cannot be kept in {self.path}: {error.strerror}. Set XDG_CACHE_HOME to a "
                "folder that you can write to."
            ) from error

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines of the file; one that was cut off is not read."""
        with self._usable():
            if not self.path.exists():
                return []
            texts = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
            if texts[-1]:  # the next line must not continue the one that was cut off
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n")
        found = []
        for text in texts:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and line.keys() >= {"operation", "times"}:
                    found.append(line)
        return found
