"""Files that are replaced only once the new ones are complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from disparse_structured.errors import SaveError

ONNX, INT8_ONNX, PAGE, SETTINGS = "model.onnx", "model.int8.onnx", "report.html", "settings.toml"
SHEET, PICTURE = "inputs.png", "picture.png"
"""Files that commands write beside a saved model."""


def made_folder(path: Path) -> Path:
    """``path``, a folder that is created if needed.

    Raises:
        SaveError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"the folder {str(path)!r} cannot be created: {error.strerror}. Choose another one."
        ) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a draft beside ``path`` to write, which takes its place at the end; after an error none is left.

    The file has the mode of any new file, whatever mode the writer gave to the draft.

    Raises:
        SaveError: it cannot be written, because the disk is full or read-only, for example.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as draft:
    ...         size = draft.write_text("new")
    ...     Path(folder, "a.txt").read_text()
    'new'
    """
    draft = path.with_name(f".draft.{path.name}")
    try:
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)
        os.replace(draft, path)
    except OSError as error:
        raise SaveError(
            f"{str(path)!r} cannot be written: {error.strerror or error}. What was there is unchanged. Free "
            "some space, or choose another path."
        ) from error
    finally:
        with suppress(OSError):  # the folder may not exist
            draft.unlink(missing_ok=True)


def checksum(*paths: Path) -> str:
    """The SHA-256 of the content of some files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def external_data(path: Path) -> Path:
    """Where an ONNX file too large for one file keeps its weights."""
    return path.with_name(f"{path.name}.data")


def described_files(path: Path, entry: Mapping[str, Any]) -> list[Path]:
    """The files whose checksum is that of ``entry``, the facts of a report about the ONNX file ``path``."""
    return [path, external_data(path)] if entry.get("external_data") else [path]


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` as UTF-8, with the same line ends on every system."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def remove_derived(folder: Path) -> None:
    """Removes what commands wrote about an earlier model of ``folder``: ONNX files, pictures, page, settings.

    Raises:
        SaveError: a file cannot be removed.
    """
    _remove(folder, SHEET, PICTURE, PAGE, SETTINGS)
    remove_onnx(folder)


def remove_onnx(folder: Path) -> None:
    """Removes the ONNX files of ``folder``, which hold earlier weights.

    Raises:
        SaveError: a file cannot be removed.
    """
    _remove(folder, ONNX, external_data(Path(ONNX)).name, INT8_ONNX)


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise SaveError(
                f"{str(folder / name)!r} of an earlier run cannot be removed: {error.strerror}. Remove it "
                "yourself, or choose another folder."
            ) from error
