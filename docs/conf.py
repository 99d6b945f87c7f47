"""The documentation site: Sphinx reads README.md, CHANGELOG.md, CONTRIBUTING.md and docs/; see ``make docs``.

Sphinx, because it is stable, maintained, BSD-licensed, and names each missing link, heading and picture.
Zensical is at 0.1, and the last release of MkDocs is from 2024.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "disparse-structured"
copyright = "the disparse-structured developers"
release = version = importlib.metadata.version(project)

extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [each.name for each in ROOT.iterdir() if each.is_dir() and each.name != "docs"]
myst_heading_anchors = 5

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False

# Seconds to wait for the server of an external link, which only `make links` checks.
linkcheck_timeout = 20

CONTENTS = r"^## Documentation\n\n(.*?)(?=^## |\Z)"
PART = r"^\*\*(.+?):\*\* ((?:.+\n)+)"
LINK = r"\[(.+?)\]\((.+?)\.md\)"


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Adds a table of contents to the first page, from the README's last section, and to two index pages."""
    if page == root_doc:
        (section,) = re.findall(CONTENTS, source[0], flags=re.MULTILINE | re.DOTALL)
        for caption, links in re.findall(PART, section, flags=re.MULTILINE):
            pages = [f"{title} <{target}>" for title, target in re.findall(LINK, links)]
            source[0] += toctree(f":caption: {caption}", "", *pages)
    elif page in ("docs/results/README", "docs/examples/README"):
        source[0] += toctree(":glob:", "", "*")


def toctree(*lines: str) -> str:
    """A table of contents that only the navigation shows."""
    return "\n".join(["", "```{toctree}", ":hidden:", *lines, "```", ""])


def add_first_page(app: Sphinx, error: Exception | None) -> None:
    """Makes the README the index page of the site."""
    if error is None and app.builder.format == "html":
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Connects both functions to Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_first_page)
