"""Writes docs/api.md from the docstrings of the public names: ``python docs/generate_api.py``."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
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
        "save_back",
        "task_latencies",
    ),
    "disparse_structured.recovery": ("Distillation", "Recovery", "Subject", "Student"),
    "disparse_structured.data": ("images", "Images"),
    "disparse_structured.structure": ("Structure", "SizeDeclaration"),
    "disparse_structured.decision.plan": ("Plan", "GroupPlan"),
    "disparse_structured.regimes": (),
    "disparse_structured.relatedness": ("relate", "Relatedness"),
    "disparse_structured.surgery.extraction": ("extract", "Extracted"),
    "disparse_structured.surgery.graph": ("apply_graph",),
    "disparse_structured.training": ("train", "TrainingConfig", "Teacher", "Callback"),
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
    return "\n\n".join([_described(name, found, level), *_members(name, found, level + 1)])


def _described(name: str, found: object, level: int) -> str:
    parts = (f"{'#' * level} `{name}`", _signature(name.rpartition(".")[2], found), _text(found))
    return "\n\n".join(part for part in parts if part)


def _members(name: str, found: object, level: int) -> list[str]:
    """The documented public methods and properties that a class defines itself."""
    if not inspect.isclass(found):
        return []
    return [
        _described(f"{name}.{each}", getattr(found, each), level)
        for each, value in vars(found).items()
        if not each.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod, property)))
        and inspect.getdoc(value)
    ]


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
            each.replace(annotation=inspect.Parameter.empty)
            for each in signature.parameters.values()
            if each.name != "self"
        ],
    )
    line = f"{name}{plain}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {each},\n" for each in _parameters(plain)) + ")"
    return f"```python\n{line}\n```"


def _parameters(signature: inspect.Signature) -> list[str]:
    """Each parameter as the signature prints it, with the markers `*` and `/` among them."""
    kinds = [each.kind for each in signature.parameters.values()]
    words = [str(each) for each in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        words.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    if inspect.Parameter.POSITIONAL_ONLY in kinds:
        words.insert(kinds.count(inspect.Parameter.POSITIONAL_ONLY), "/")
    return words


def _text(found: object) -> str:
    text = inspect.getdoc(found) or ""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    text = text.replace("``", "`")
    example = r"^Example:\n((?:(?: {4}.*)?(?:\n|\Z))+)"
    text = re.sub(example, lambda match: textwrap.dedent(match[1]), text, flags=re.MULTILINE)
    pycon = r"((?:^>>>.*(?:\n(?!\n).+)*(?:\n|\Z))+)"
    text = re.sub(pycon, lambda match: f"```pycon\n{match[1].strip()}\n```\n", text, flags=re.MULTILINE)
    sections = r"^(Args|Attributes|Raises|Returns|Warns):\n((?:(?: {4}.*)?(?:\n|\Z))+)"
    return re.sub(sections, _section, text, flags=re.MULTILINE).strip()


def _section(match: re.Match[str]) -> str:
    """A section of a docstring: a list where it has named entries, otherwise a paragraph."""
    title, body = match[1], textwrap.dedent(match[2]).strip()
    if title == "Returns":
        return f"**Returns**\n\n{body}\n\n"
    entries = re.split(r"\n(?=\S)", body)
    lines = [re.sub(r"^([^:]+): ", r"- `\1`: ", re.sub(r"\n\s+", "\n  ", each)) for each in entries]
    return f"**{title}**\n\n" + "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
