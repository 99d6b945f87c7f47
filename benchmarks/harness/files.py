"""Where results are kept, and files that are complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
PAGES = ROOT / "docs" / "results"
"""Generated pages and their plots."""

RESULTS = BENCHMARKS / "results"
"""Rows and summaries that the pages are written from; tracked, but not distributed."""

SCRATCH = BENCHMARKS / "out"
"""Results of quick runs; not tracked."""

CACHE = BENCHMARKS / ".cache"
"""Trained networks and other things worth computing once; not tracked."""


def write_text(path: Path, text: str) -> None:
    """Replaces ``path`` by ``text``; after an interruption, either the old text or the new one is there."""
    draft = _draft(path)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """:func:`write_text` of indented JSON."""
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def save_weights(path: Path, model: nn.Module) -> None:
    """Replaces ``path`` by the weights of ``model`` as a safetensors file, all or nothing."""
    from safetensors.torch import save_file

    draft = _draft(path)
    save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, draft)
    draft.replace(path)


def _draft(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.{os.getpid()}.draft")
