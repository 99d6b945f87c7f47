"""docs/first-hour.md shows what its commands print."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from disparse_structured.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
TRANSCRIPT = runpy.run_path(str(DOCS / "transcript.py"))


def printed(command: str) -> str:
    """What a command of the page prints, run in this process."""
    program, *words = shlex.split(command.replace("\\\n", " "))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        if program == "disparse":
            assert main(words) == 0
        else:
            runpy.run_path(words[0], run_name="__main__")
    return shown.getvalue()


def said(text: str) -> list[str]:
    """The lines of ``text`` without numbers, hashes and layout, and without the groups that shrink."""
    text = re.sub(r"plan [0-9a-f]{12}", "plan", text)
    lines = (re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*(e[+-]\d+)?", "0", line)) for line in text.splitlines())
    lines = (line.strip() for line in lines)
    return [line for line in lines if line and "→" not in line and "──" not in line]


def test_the_page_shows_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "first-hour.md").read_text(encoding="utf-8")
    TRANSCRIPT["write_files"](page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", TRANSCRIPT["COLUMNS"])
    commands = TRANSCRIPT["commands"](page)
    assert len(commands) == page.count("```console\n$ ")

    for command, shown in commands:
        assert said(printed(command)) == said(shown), command
    monkeypatch.delitem(sys.modules, "net")

    plans = [tmp_path / folder / "plan.json" for folder in ("small", "by-python")]
    assert plans[0].read_bytes() == plans[1].read_bytes()
