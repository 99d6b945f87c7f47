"""Loads the entry points by which other packages extend this one, and describes them in errors."""

from __future__ import annotations

import functools
import os
import sys
from importlib import metadata
from typing import Any

from disparse_structured.errors import ExtensionError

SIZES = "disparse_structured.sizes"
"""The group of entry points that declare sizes: ``name = "package.module:function"``.

The function is called with every module of a model and returns the
:class:`~disparse_structured.structure.extending.SizeDeclaration` objects of that module.
"""

RULES = "disparse_structured.rules"
"""The group of entry points that register operator rules: ``name = "package.module"``.

The module is imported; its functions are registered by
:func:`~disparse_structured.structure.extending.rule`.
"""


def load_rules() -> None:
    """Import every module of the group :data:`RULES` that has not been imported yet.

    Raises:
        ExtensionError: a module cannot be imported.
    """
    for entry in installed(RULES):
        loaded(entry)


def installed(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of ``group``; what is installed is read once, until a folder changes."""
    return _read(group, tuple((folder, _changed(folder)) for folder in sys.path))


@functools.lru_cache(maxsize=4)
def _read(group: str, folders: tuple[tuple[str, int], ...]) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))


def _changed(folder: str) -> int:
    """When ``folder`` last changed, in nanoseconds; 0 if there is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def loaded(entry: metadata.EntryPoint) -> Any:
    """Load the object that ``entry`` names.

    Raises:
        ExtensionError: it cannot be loaded.
    """
    try:
        return entry.load()
    except Exception as error:  # importing another package may raise anything
        raise ExtensionError(
            f"{described(entry)} cannot be loaded ({type(error).__name__}: {error}). Repair or uninstall the "
            "package that registers it."
        ) from error


def described(entry: metadata.EntryPoint) -> str:
    """Describe ``entry`` and the package that registers it, for an error message."""
    package = f" of {entry.dist.name}" if entry.dist is not None else ""
    return f"the entry point {entry.name!r} = {entry.value!r}{package} (group {entry.group!r})"
