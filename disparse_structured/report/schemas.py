"""The layouts of ``report.json`` and ``plan.json``, as JSON Schema, and documents checked against them.

Importing this module imports nothing heavy. A document is checked as a whole before anything in it is looked
up, so that a damaged or hostile file ends in an error that names the entry.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from disparse_structured.errors import LoadError

SCHEMA = 1
"""Version of the layout of ``report.json``. It changes when an older reader would misread a newer file."""

PLAN_SCHEMA = 2
"""Version of the layout of ``plan.json``. It changes likewise."""

LARGEST = 64_000_000
"""Bytes of the largest file that is read."""

_REMEDY = "Give a folder that save(), `disparse prune` or `disparse train` wrote."

_TYPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "object": ("an object", (dict,)),
    "array": ("a list", (list,)),
    "string": ("a text", (str,)),
    "number": ("a number", (int, float)),
    "integer": ("a whole number", (int,)),
    "boolean": ("true or false", (bool,)),
    "null": ("null", (type(None),)),
}


@functools.cache
def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of ``name``, ``"report"`` or ``"plan"``.

    >>> schema("report")["required"]
    ['model', 'plan', 'tasks']
    """
    text = resources.files(__package__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def read_document(path: Path, name: str) -> dict[str, Any]:
    """The JSON file ``path``, which fits the schema ``name``.

    Raises:
        LoadError: it cannot be read, is not JSON, is too large, or an entry is not what it should be.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size > LARGEST:
            what = (
                f"has {size / 1e6:,.0f} MB, which is too large for a {name}"
                if path.is_file()
                else "is not a file"
            )
            raise LoadError(f"{str(path)!r} {what}. {_REMEDY}")
        return parse_document(path.read_text(encoding="utf-8"), name, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{str(path)!r} cannot be read: {error}. {_REMEDY}") from None


def parse_document(text: str, name: str, place: str) -> dict[str, Any]:
    """The document that ``text`` holds, which fits the schema ``name``; ``place`` is where it came from.

    Raises:
        LoadError: it is not JSON, or an entry is not what it should be.
    """
    try:
        document = json.loads(text)
        # A lone surrogate can be spelled in JSON, but not written as UTF-8.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{place!r} is not JSON: {error}. {_REMEDY}") from None
    check_document(document, name, place)
    return dict(document)


def document_text(document: Mapping[str, Any]) -> str:
    """``document`` as indented JSON with sorted keys; a number that is not finite is written as null.

    >>> print(document_text({"deviation": float("inf")}))
    {
      "deviation": null
    }
    """
    return json.dumps(_finite(document), indent=2, sort_keys=True, allow_nan=False)


def _finite(value: Any) -> Any:
    """``value`` with None in place of numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_document(document: object, name: str, place: str) -> None:
    """Raises :class:`LoadError` unless ``document`` fits the schema ``name`` and its version is known."""
    whole = schema(name)
    known = {"report": SCHEMA, "plan": PLAN_SCHEMA}[name]
    problem = _problem(document, whole, whole, "")
    if problem is None and isinstance(document, dict) and document.get("schema", known) > known:
        raise LoadError(
            f"{place!r} has schema version {document['schema']}, but this release reads up to version "
            f"{known}. Use the release that wrote it, or a newer one."
        )
    if problem is not None:
        raise LoadError(f"{place!r} is not a {name} of this package: {problem}. {_REMEDY}")


def _problem(value: Any, part: Mapping[str, Any], whole: Mapping[str, Any], at: str) -> str | None:
    """What is wrong with ``value`` at the entry ``at``; None if it fits ``part`` of the schema ``whole``."""
    if "$ref" in part:
        return _problem(value, whole["$defs"][part["$ref"].rpartition("/")[2]], whole, at)
    if "anyOf" in part:
        *others, last = [_problem(value, each, whole, at) for each in part["anyOf"]]
        return None if last is None or None in others else others[0]
    kinds = part.get("type")
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(_TYPES[kind][0] for kind in kinds)
            return f"{at or 'the document'} must be {wanted}, found {_short(value)}"
    if isinstance(value, dict):
        return _object_problem(value, part, whole, at)
    if isinstance(value, list) and "items" in part:
        found = (_problem(each, part["items"], whole, f"{at}[{i}]") for i, each in enumerate(value))
        return next((problem for problem in found if problem is not None), None)
    if "minimum" in part and value is not None and value < part["minimum"]:
        return f"{at} must be at least {part['minimum']}, found {_short(value)}"
    return None


def _object_problem(
    value: Mapping[str, Any], part: Mapping[str, Any], whole: Mapping[str, Any], at: str
) -> str | None:
    missing = [name for name in part.get("required", ()) if name not in value]
    if missing:
        return f"{_inside(at, missing[0])} is missing"
    known = part.get("properties", {})
    for name, each in value.items():
        inner = known.get(name, part.get("additionalProperties"))
        problem = None if inner is None else _problem(each, inner, whole, _inside(at, name))
        if problem is not None:
            return problem
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind in ("number", "integer") and isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, _TYPES[kind][1])


def _inside(at: str, name: str) -> str:
    short = name if len(name) <= 60 else f"{name[:57]}..."
    return f"{at}.{short}" if at else short


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return "a number that is too large"
    if isinstance(value, dict | list):
        return _TYPES["object" if isinstance(value, dict) else "array"][0]
    text = json.dumps(value) if isinstance(value, float) and math.isfinite(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
