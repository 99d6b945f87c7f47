"""The documentation site: what is missing stops the build, and search works without a server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

README = """# A project

Text.

## Documentation

**Start:** [One](docs/one.md) · [Two](docs/two.md)

**Look up:** [Words](docs/words.md)

License.
"""


def written(folder: Path, **pages: str) -> Path:
    """A folder with the README above and these pages."""
    (folder / "docs").mkdir(parents=True)
    (folder / "README.md").write_text(README, encoding="utf-8")
    texts = {"one": "# One\n", "two": "# Two\n", "words": "# Words\n\nA watershed parts tasks.\n"}
    for name, text in {**texts, **pages}.items():
        (folder / "docs" / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


def build(source: Path, *options: str) -> tuple[Path, str]:
    """Builds ``source`` as ``make docs`` builds the repository; the site, and the warnings."""
    site = source.parent / f"{source.name}-site"
    command = [sys.executable, "-m", "sphinx", "--conf-dir", str(ROOT / "docs"), "--fail-on-warning"]
    command += ["--keep-going", "--quiet", *options, str(source), str(site)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return site, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = written(tmp_path_factory.mktemp("good") / "source", one="# One\n\nSee [it](words.md#words).\n")
    built, warnings = build(source)
    assert warnings == ""
    return built


def test_the_readme_is_the_first_page_and_its_last_section_the_contents(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    listed = r'<span class="caption-text">(.*?)</span>|toctree-l1"><a [^>]*href="(.*?)">(.*?)</a>'

    assert re.findall(listed, first) == [
        ("Start", "", ""),
        ("", "docs/one.html", "One"),
        ("", "docs/two.html", "Two"),
        ("Look up", "", ""),
        ("", "docs/words.html", "Words"),
    ]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', page.read_text(encoding="utf-8"))
        assert loaded == [], page


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
def test_search_works_on_files(site: Path, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    page = f"{(site / 'search.html').as_uri()}?q=watershed"
    done = subprocess.run(
        [str(BROWSER), *options, "--virtual-time-budget=10000", "--dump-dom", page],
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert re.search(r'<a href="docs/words\.html[^"]*"[^>]*>Words</a>', done.stdout), done.stderr


def test_what_is_missing_stops_the_build(tmp_path: Path) -> None:
    pages = {
        "one": "# One\n\n[page](three.md), [heading](two.md#nowhere), ![picture](none.png)\n",
        "orphan": "# Orphan\n",
    }
    _, warnings = build(written(tmp_path / "bad", **pages), "--builder", "dummy")

    for name in ("three.md", "nowhere", "none.png"):
        assert re.search(rf"one\.md:\d+: WARNING: .*{name}", warnings), warnings
    assert "orphan.md: WARNING: document isn't included in any toctree" in warnings
