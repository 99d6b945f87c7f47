"""A page as a reader of HTML sees it, and folders that it is about."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "input", "br", "wbr", "hr", "img"}

PLAN: dict[str, Any] = {
    "schema": 2,
    "fingerprint": "f" * 64,
    "tasks": ["near", "far"],
    "groups": [
        {
            "name": "trunk.0",
            "kind": "channel",
            "units": 8,
            "reach": ["near", "far"],
            "removed": "0-3",
            "votes": {"near": "0-3", "far": "2-5"},
        },
        {
            "name": "far.0",
            "kind": "channel",
            "units": 4,
            "reach": ["far"],
            "removed": "",
            "votes": {"far": "1"},
        },
    ],
    "predicted": {"macs": {"before": 100.0, "after": 50.0, "unit": "MACs"}},
    "budget": {"cost": "macs", "limit": 0.5, "protected": ["far.*"]},
    "provenance": {"method": "DiSparse", "seed": 7, "versions": {"torch": "2.9"}},
}

REPORT: dict[str, Any] = {
    "schema": 1,
    "model": "Tiny",
    "costs": {"macs": {"unit": "MACs", "dense": 100.0, "predicted": 50.0, "counted": 50}},
    "tasks": [
        {"name": "near", "labeled": True, "units": 8, "shared": 8, "asked": 0.5, "removed": 0.5},
        {"name": "far", "labeled": True, "units": 12, "shared": 8, "asked": 0.4, "removed": 0.3},
    ],
    "method": "DiSparse",
    "deviation": {
        "samples": 20,
        "checked": 4,
        "cut": {"near": 0.04, "far": 0.08},
        "final": {"near": 0.01, "far": 0.02},
    },
    "refit": {
        "method": "LeastSquares()",
        "samples": 20,
        "checked": 4,
        "layers": [{"layer": "far.0.weight", "features": 36, "rows": 640, "before": 0.5, "after": 0.25}],
        "skipped": [],
        "before": {},
        "after": {},
    },
    "verification": {
        "verified": True,
        "dtype": "torch.float64",
        "tolerance": 1e-9,
        "deviation": {"near": 1e-16, "far": 0.0},
        "empty": {},
        "beyond": ["train mode"],
    },
    "pinned": [
        {"reason": "the network's output", "operator": "output", "module": "", "parameters": 4, "share": 0.2},
        {"reason": "16 is hard-coded", "operator": "view", "module": "far", "share": 0.1, "number": True},
    ],
    "refused": [{"group": "near.1", "reason": "forward cannot follow"}],
    "unused": [{"module": "spare", "parameters": 9, "share": 0.3}],
    "versions": {"torch": "2.9"},
    "command": ["prune", "--model", "my net.py:build"],
    "latency": {
        "reference": "dense",
        "models": [
            {
                "name": name,
                "median_ms": median,
                "lower_quartile_ms": median - 0.5,
                "upper_quartile_ms": median + 0.5,
                "speedup": 4.0 / median,
                "paired_speedup": 4.0 / median,
            }
            for name, median in (("dense", 4.0), ("pruned", 2.0))
        ],
        "input_shapes": [[1, 3, 8, 8]],
        "threads": 1,
        "rounds": 30,
        "warmup": 5,
        "cpu": "a processor",
        "runtime": "onnxruntime 1.22",
    },
}


def folder(path: Path, report: dict[str, Any] | None = None, plan: dict[str, Any] | None = None) -> Path:
    """A folder with a report and its plan; what is given takes the place of the usual entries."""
    path.mkdir(parents=True, exist_ok=True)
    own = {**copy.deepcopy(PLAN), **(plan or {})}
    text = json.dumps(own, sort_keys=True, indent=2, ensure_ascii=False)
    (path / "plan.json").write_text(text + "\n", encoding="utf-8")
    entries = {**copy.deepcopy(REPORT), "plan": sha256(text.encode()).hexdigest(), **(report or {})}
    (path / "report.json").write_text(json.dumps(entries), encoding="utf-8")
    return path


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    inside: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text in it, in order."""
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[Element]:
        """The elements below it with this tag, in order."""
        found = [self] if self.tag == tag else []
        return found + [each for child in self.inside for each in child.all(tag)]

    def id(self, name: str) -> Element:
        """The one element below it with this id."""
        (found,) = [each for each in self.everything() if each.attributes.get("id") == name]
        return found

    def everything(self) -> list[Element]:
        """It and all elements below it."""
        return [self, *(each for child in self.inside for each in child.everything())]

    def table(self) -> list[list[str]]:
        """The rows below it, with their cells' texts."""
        return [[cell.text for cell in row.inside] for row in self.all("tr")]


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], [each.tag for each in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        element = Element(tag, dict(attrs))
        self._open[-1].inside.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, (self._open[-1].tag, tag)
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.words.append(data)
