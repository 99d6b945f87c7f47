"""From ``package.module:name`` or ``path/to/file.py:name`` to the object."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from disparse_structured.cli.usage import UsageError, reason, suggestion
from disparse_structured.errors import DisparseError


def check_spec(spec: str, option: str) -> None:
    """Refuses a ``spec`` whose file or top-level module does not exist, without importing anything.

    Raises:
        UsageError: it says what exists.
    """
    place = _place_and_path(spec, option)[0]
    if place.endswith(".py"):
        _existing(Path(place), f"{option} {spec!r}")
        return
    top = place.partition(".")[0]
    _importable(Path.cwd())
    importlib.invalidate_caches()
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        raise UsageError(f"{option} {spec!r}: {_no_module(top)}")


def find(spec: str, option: str) -> Any:
    """The object that ``spec`` names; modules are also looked for in the current directory.

    Raises:
        UsageError: the file, module or attribute does not exist (it says what exists), or importing fails.
    """
    place, path = _place_and_path(spec, option)
    said = f"{option} {spec!r}"
    module = _from_file(Path(place), said) if place.endswith(".py") else _from_import(place, said)
    found: Any = module
    for name in path.split("."):
        if name not in dir(found):
            owner = f"module {place!r}" if found is module else f"{type(found).__name__} {name!r}"
            public = [each for each in dir(found) if not each.startswith("_")]
            raise UsageError(f"{said}: {owner} has no {name!r}. {suggestion(name, public, 'public name')}")
        found = getattr(found, name)
    return found


@contextlib.contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Turns what the user's own code raises into a :class:`UsageError` that names the line."""
    try:
        yield
    except DisparseError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{doing} raised {reason(error)}{_line(error)}.") from error


def _place_and_path(spec: str, option: str) -> tuple[str, str]:
    place, _, path = spec.rpartition(":")
    if not place or not path:
        raise UsageError(
            f"{option} {spec!r} does not name an object. Write package.module:name or path/to/file.py:name."
        )
    return place, path


def _from_import(name: str, said: str) -> ModuleType:
    _importable(Path.cwd())
    importlib.invalidate_caches()
    with user_code(f"{said}: importing {name!r}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if f"{name}.".startswith(f"{missing}.") and missing:
                raise UsageError(f"{said}: {_no_module(missing)}") from None
            raise


def _no_module(missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    if not parent:
        files = [each.stem for each in Path.cwd().glob("*.py")]
        folders = [each.name for each in Path.cwd().iterdir() if each.is_dir() and each.name.isidentifier()]
        hint = suggestion(last, files + folders, "module in that directory")
        return f"module {missing!r} is neither in {str(Path.cwd())!r} nor installed. {hint}"
    path = getattr(sys.modules[parent], "__path__", None)
    if path is None:
        return f"{parent!r} is a module, not a package, so {missing!r} does not exist. Write {parent}:name."
    inside = [module.name for module in pkgutil.iter_modules(path)]
    return f"package {parent!r} has no module {last!r}. {suggestion(last, inside, 'module in it')}"


def _existing(path: Path, said: str) -> Path:
    if not path.is_file():
        siblings = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = suggestion(path.name, siblings, f"Python file in {str(path.parent)!r}")
        raise UsageError(f"{said}: {str(path)!r} does not exist in {str(Path.cwd())!r}. {hint}")
    return path.resolve()


def _from_file(path: Path, said: str) -> ModuleType:
    path = _existing(path, said)
    # One module per file, however often and by whichever option it is named.
    name = f"{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    _importable(Path.cwd())
    _importable(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with user_code(f"{said}: running {str(path)!r}"):
            spec.loader.exec_module(module)
    except DisparseError:
        del sys.modules[name]
        raise
    return module


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _line(error: BaseException) -> str:
    """Where the user's own code raised ``error``."""
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "importlib" not in code.co_filename and os.path.dirname(__file__) not in code.co_filename:
            place = f" (at {code.co_filename}:{traceback.tb_lineno}, in {code.co_name})"
        traceback = traceback.tb_next
    return place
