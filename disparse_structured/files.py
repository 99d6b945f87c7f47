"""Files that are replaced only once the new ones are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a draft beside ``path`` to write, which takes its place at the end; after an error none is left.

    The file has the mode of any new file, whatever mode the writer gave to the draft.

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
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` as UTF-8, with the same line ends on every system."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
