"""The page in a real browser: sorted, searched, light and dark, without errors, and accessible."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disparse_structured.report.page.comparison import Comparison
from disparse_structured.report.page.html import diff_page, page
from disparse_structured.report.page.pictures import Example
from disparse_structured.report.page.run import Run
from tests.support.pages import folder

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = importlib.util.find_spec("axe_playwright_python")

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed"),
    pytest.mark.xdist_group("chromium"),
]

SCORES = np.random.default_rng(0).random((4, 5, 24, 32), np.float32)
EXAMPLES = [
    Example("1", np.zeros((24, 32, 3), np.uint8), {"parts": [SCORES[0]]}, {"parts": [SCORES[1]]}),
    Example(
        "2",
        None,
        {"depth": [SCORES[2, :1]], "kind": [SCORES[2, 0, 0]]},
        {"depth": [SCORES[3, :1]], "kind": [SCORES[3, 0, 0]]},
    ),
]
"""A class map, depth and scores, with a picture of the input and without."""

LISTEN = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
const answer = (found) => {
  const place = document.createElement("pre");
  place.id = "answer";
  place.textContent = JSON.stringify({ ...found, errors });
  document.body.append(place);
};
</script>"""

USE = """<script>
const rows = () => [...document.querySelectorAll("#groups-table tbody tr")].filter((row) => !row.hidden);
const names = () => rows().map((row) => row.cells[1].textContent);
const heading = document.querySelectorAll("#groups-table thead th")[6];
const found = { first: names() };
heading.querySelector("button").click();
found.falling = [names(), heading.getAttribute("aria-sort")];
heading.querySelector("button").click();
found.rising = [names(), heading.getAttribute("aria-sort")];
const field = document.getElementById("search");
field.value = "FAR chan";
field.dispatchEvent(new Event("input"));
found.searched = [names(), document.querySelector(".status").textContent];
const paper = () => getComputedStyle(document.body).backgroundColor;
found.light = paper();
document.getElementById("theme").click();
found.dark = [paper(), document.documentElement.dataset.theme, document.getElementById("theme").textContent];
answer(found);
</script>"""

CHECK = """<script>
axe.run(document).then((result) => answer({
  violations: result.violations.map((each) => [each.id, each.nodes.map((node) => node.html.slice(0, 200))]),
  passes: result.passes.length,
}));
</script>"""


def answered(text: str, *scripts: str, place: Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """What ``scripts`` answer at the end of the page."""
    text = text.replace("<head>", f"<head>{LISTEN}", 1).replace("</body>", f"{''.join(scripts)}</body>")
    (place / "page.html").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={place / 'profile'}",
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
            *options,
            "--dump-dom",
            (place / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stderr
    assert ":CONSOLE" not in done.stderr, done.stderr
    answer = dict(json.loads(html.unescape(found[1])))
    assert answer["errors"] == []
    return answer


def test_the_votes_are_sorted_and_searched_and_the_colors_change(tmp_path: Path) -> None:
    found = answered(page(Run.of_folder(folder(tmp_path / "small"))), USE, place=tmp_path)
    assert found["first"] == ["trunk.0", "far.0"]
    assert found["falling"] == [["trunk.0", "far.0"], "descending"]
    assert found["rising"] == [["far.0", "trunk.0"], "ascending"]
    assert found["searched"] == [["far.0"], "1 of 2 groups"]
    assert found["light"] == "rgb(255, 255, 255)"
    assert found["dark"] == ["rgb(18, 22, 29)", "dark", "Light"]


@pytest.mark.skipif(AXE is None, reason="axe is not installed: pip install axe-playwright-python")
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 500)])
def test_axe_finds_nothing(tmp_path: Path, theme: str, width: int) -> None:
    assert AXE is not None
    assert AXE.origin is not None
    axe = Path(AXE.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    run = Run.of_folder(folder(tmp_path / "small"))
    other = Run.of_folder(folder(tmp_path / "other", plan={"fingerprint": "e" * 64}))
    for text in (page(run), page(run, EXAMPLES), diff_page(Comparison(run, other))):
        dressed = text.replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">')
        size = (f"--window-size={width},900",)
        found = answered(dressed, f"<script>{axe}</script>", CHECK, place=tmp_path, options=size)
        assert found["violations"] == []
        assert found["passes"] > 20
