"""Runs the commands of docs/first-hour.md and writes what they print into it: ``python docs/transcript.py``.

A Python block whose first line is a file's name in a comment is written to that file. A console block holds
one command. The text block after it holds what the command prints on standard output, and the line in italics
its CPU seconds, starting Python included.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "first-hour.md"
COLUMNS = "88"

FILE = r"^```python\n# (?P<file>\S+)\n(?P<text>.*?)^```\n"
COMMAND = (
    r"^```console\n\$ (?P<command>.*?)^```\n"
    r"(?:\n```text\n(?P<printed>.*?)^```\n)?"
    r"\n\*(?P<seconds>[\d.]+) s\*\n"
)


def commands(page: str) -> list[tuple[str, str]]:
    """Each command of ``page``, and what the page says that it prints."""
    found = re.finditer(COMMAND, page, flags=re.MULTILINE | re.DOTALL)
    return [(each["command"], each["printed"] or "") for each in found]


def write_files(page: str, folder: Path) -> None:
    """Writes the files that ``page`` shows."""
    for each in re.finditer(FILE, page, flags=re.MULTILINE | re.DOTALL):
        (folder / each["file"]).write_text(each["text"].lstrip("\n"), encoding="utf-8")


def repeated(page: str, folder: Path) -> str:
    """``page`` with what its commands print now."""

    def run(match: re.Match[str]) -> str:
        command = match["command"]
        words = shlex.split(command.replace("\\\n", " "))
        program = {"disparse": [sys.executable, "-m", "disparse_structured"], "python": [sys.executable]}
        before = _cpu_seconds()
        done = subprocess.run(
            [*program[words[0]], *words[1:]],
            cwd=folder,
            env={**os.environ, "COLUMNS": COLUMNS, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        printed = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
        shown = f"\n```text\n{printed}\n```\n" if printed else ""
        return f"```console\n$ {command}```\n{shown}\n*{_cpu_seconds() - before:.1f} s*\n"

    write_files(page, folder)
    page = re.sub(COMMAND, run, page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^Machine: .*$", f"Machine: {machine()}.", page, flags=re.MULTILINE)


def machine() -> str:
    """The processor and the versions that times depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    torch = importlib.metadata.version("torch")
    return f"{processor}, one thread, Python {platform.python_version()}, torch {torch}"


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(repeated(PAGE.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")
