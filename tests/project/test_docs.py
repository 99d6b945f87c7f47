"""The pages and the docstrings say what is true: their code runs, their links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)


def doctested() -> list[str]:
    """Modules of the package whose docstrings hold examples."""
    found = []
    for folder, prefix in (("disparse_structured", ""), ("adapters", "adapters."), ("export", "export.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if re.search(r">>> (?!.*doctest: .SKIP)", path.read_text(encoding="utf-8")):
                inside = path.relative_to(ROOT / folder).with_suffix("").as_posix().replace("/", ".")
                found.append(f"disparse_structured.{prefix}{inside}".removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("name", doctested())
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert not result.failed


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", here.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        there = (here.parent / path).resolve() if path else here
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_api_reference_is_up_to_date() -> None:
    namespace: dict[str, Any] = {
        "__file__": str(ROOT / "docs" / "generate_api.py"),
        "__name__": "generate_api",
    }
    exec(
        compile((ROOT / "docs" / "generate_api.py").read_text(encoding="utf-8"), "generate_api.py", "exec"),
        namespace,
    )

    assert namespace["TARGET"].read_text(encoding="utf-8") == namespace["page"](), (
        "run: python docs/generate_api.py"
    )


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, disparse_structured; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.split() == ["False", "False"]
