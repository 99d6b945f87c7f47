"""Writes docs/api.md from the docstrings of the public names: ``python docs/generate_api.py``."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

PAGES: dict[str, tuple[str, ...]] = {
    "disparse_structured": (),
    "disparse_structured.pipeline": (
        "Method",
        "Problem",
        "Iterative",
        "PruningResult",
        "check_folder",
        "FolderChecks",
        "Check",
        "quantize",
        "task_latencies",
    ),
    "disparse_structured.recovery": ("Distillation", "Recovery", "Subject", "Student"),
    "disparse_structured.regimes": (),
    "disparse_structured.relatedness": ("relate", "Relatedness"),
    "disparse_structured.surgery.extraction": ("extract", "Extracted"),
    "disparse_structured.surgery.graph": ("apply_graph",),
    "disparse_structured.training": ("train", "TrainingConfig", "Distillation", "Callback"),
    "disparse_structured.latency": (),
    "disparse_structured.export": (),
    "disparse_structured.report.quantization": ("QuantizationFacts", "TaskDeviation", "LayerFact"),
    "disparse_structured.adapters.timm": ("multitask", "MultiTask"),
    "disparse_structured.errors": (),
}
"""The modules of the reference, and the names of each; all of ``__all__`` where none are listed."""

TARGET = Path(__file__).with_name("api.md")


def page() -> str:
    """The whole reference as Markdown."""
    parts = [
        "# API reference",
        "Generated from the docstrings by `python docs/generate_api.py`. Modules of a family "
        "(`ds.criteria`, `ds.arbiters`, …) are listed with what they hold.",
    ]
    for name, chosen in PAGES.items():
        module = importlib.import_module(name)
        parts.append(f"## `{name}`")
        parts.extend(_entry(module, each, level=3) for each in chosen or _public(module))
    return "\n\n".join(parts) + "\n"


def _public(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    ]


def _entry(module: ModuleType, name: str, level: int) -> str:
    found = getattr(module, name)
    if inspect.ismodule(found):
        inside = [_entry(found, each, level + 1) for each in _public(found)]
        return "\n\n".join([f"{'#' * level} `{name}` ({found.__name__})", _text(found), *inside])
    return "\n\n".join(
        part for part in (f"{'#' * level} `{name}`", _signature(name, found), _text(found)) if part
    )


def _signature(name: str, found: object) -> str:
    if not callable(found):
        return ""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return ""
    plain = signature.replace(
        return_annotation=inspect.Signature.empty,
        parameters=[
            each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()
        ],
    )
    return f"```python\n{name}{plain}\n```"


def _text(found: object) -> str:
    text = inspect.getdoc(found) or ""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    text = text.replace("``", "`")
    text = re.sub(r"((?:^>>>.*\n?(?:^(?!\n).+\n?)*)+)", r"```pycon\n\1\n```\n", text, flags=re.MULTILINE)
    return re.sub(r"^(Args|Raises|Returns|Attributes):$", r"**\1**\n", text, flags=re.MULTILINE)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
