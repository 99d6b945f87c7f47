"""Files that are replaced only once the new ones are complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from disparse_structured.files import replacing, write_text


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old\n")

    def stopped() -> None:
        with replacing(path) as draft:
            draft.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()

    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
    assert path.read_bytes() == b"old\n"
    write_text(path, "new\n")
    assert path.read_bytes() == b"new\n"


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "no" / "a.txt", "text")
    assert not list(tmp_path.iterdir())
