"""Plain English: phrases that a native editor would rewrite do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BANNED = {
    r"\bis no (way|criterion|arbiter|ranking|width|share|model|shape|folder|number|plan|ratio)\b": "is not a",
    r"\bis no (module|string|finite|whole|recovery)\b|\bare no (views|whole)\b": "is not a",
    r"\b(in the place of|anything else than)\b": "in place of, instead of, other than",
    r"\bholds? no examples?\b": "contains no examples",
    r"\blearnt\b|test_\w*_learnt_": "learned",
    r"\bis none of\b": "must be one of",
    r"\bthat there is not\b": "unknown",
    r"\bwill not do\b": "invalid",
    r"\bwhat goes\b|\bmay go\b|\bgoes whole\b": "removed, can be removed",
    r"\bgoes on (to|as|where)\b": "continues, resumes",
    r"\banew\b": "again, from scratch",
    r"\bof everything random\b": "random seed",
    r"\bwhoever\b|\bsomebody who\b|\bsomebody\b": "name the reader, or use the passive",
    r"\b(up|down) is good\b": "higher is better",
    r"\bas of `{1,2}\w+`": "as in",
    r"\bprov(e|es|ed|en|ing)\b|\bproofs?\b": "verify, verified, verification",
    r"\bbeside each other\b": "compared, side by side",
    r"\bnow and then\b": "occasional, occasionally",
    r"\b(at its|at their) place\b": "in its place",
    r"\bwins? (time|nowhere)\b": "saves time",
    r"\bbears? INT8\b": "tolerates INT8",
    r"\brelative to these alone\b": "relative to those columns alone",
    r"\b(stand|stands) in a file\b": "come from a file",
    r"\bshows? (itself|themselves)\b": "is displayed",
    r"\b(sleeping branch\w*|woken)\b": "name what is done to the weights",
    r"\bfrom 1 on\b": "of at least 1",
    r"\btakes one (batch|size) only\b": "has a fixed batch size",
    r"\bforesight\b": "compensated damage",
    r"\bweights that stay\b|\bwhat stays\b|\bstay as they are\b": "remaining weights, kept, unchanged",
    r"\b(optimis|initialis|normalis|regularis|summaris|quantis|parametris|generalis|organis|recognis|minimis|maximis|"
    r"visualis|specialis|materialis|serialis|standardis|localis|utilis)\w*": "US spelling: -ize",
    r"\b(behaviour|neighbour|licence|unlabelled|labell|favour|artefact|catalogue)\w*": "US",
}
"""Patterns, and what to write instead."""

ALLOWED = {"tests/project/test_language.py"}


def texts() -> list[Path]:
    folders = ("disparse_structured", "adapters", "export", "benchmarks", "examples", "docs", "tests")
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    found += sorted((ROOT / "docs").rglob("*.md"))
    found += [
        ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
    ]
    return [path for path in found if path.relative_to(ROOT).as_posix() not in ALLOWED]


@pytest.mark.parametrize("pattern", BANNED, ids=list(BANNED.values()))
def test_banned_phrases_stay_away(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line, flags=re.IGNORECASE)
    ]

    assert not found, f"write instead: {BANNED[pattern]}\n" + "\n".join(found[:40])
