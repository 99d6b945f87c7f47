"""The README's code runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)

    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "plan.json",
        "weights.safetensors",
        "report.json",
        "model.onnx",
    }
    report = names["pruned"].report  # type: ignore[attr-defined]
    assert 0.49 <= report.costs["macs"].ratio <= 0.5


def test_the_code_of_the_regimes_page_runs() -> None:
    page = (ROOT / "docs" / "regimes.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, "regimes.md", "exec"), names)
    assert names["pruned"].report.costs["macs"].ratio <= 0.3  # type: ignore[attr-defined]


def test_the_code_of_the_relatedness_page_runs() -> None:
    page = (ROOT / "docs" / "relatedness.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, "relatedness.md", "exec"), names)
    images = names["images"][0]
    with torch.no_grad():
        dense, branched = names["model"].eval()(images), names["branched"].eval()(images)
    assert all(torch.equal(branched[task], dense[task]) for task in dense)
    assert names["alone"].parameters[1] < names["alone"].parameters[0]


def test_links_and_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
