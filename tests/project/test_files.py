"""Files that cannot be written: named, and what was there remains."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import disparse_structured as ds
from disparse_structured.errors import SaveError
from disparse_structured.files import write_text
from disparse_structured.pipeline import PruningResult


@pytest.fixture(scope="module")
def result() -> PruningResult:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 4, 3))
    return ds.prune(model.eval(), torch.randn(8, 3, 10, 10), macs=0.5, method=ds.DiSparse(), refit=None)


@pytest.fixture
def _full() -> Iterator[None]:
    """A disk on which no file may be larger than 1 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_is_named_and_the_old_folder_remains(
    result: PruningResult, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result.save(tmp_path)
    before = contents(tmp_path)
    request.getfixturevalue("_full")

    with pytest.raises(SaveError, match=r"weights\.safetensors' cannot be written: .*too large"):
        result.save(tmp_path)
    with pytest.raises(SaveError, match=r"report\.json' cannot be written: File too large"):
        write_text(tmp_path / "report.json", "x" * 4096)

    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_created_is_named(result: PruningResult, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for place in (tmp_path / "taken", tmp_path / "taken" / "deeper"):
        with pytest.raises(SaveError, match=r"the folder .*taken.* cannot be created"):
            result.save(place)


def test_a_file_in_a_folder_that_does_not_exist_is_named(result: PruningResult, tmp_path: Path) -> None:
    for write in (result.plan.save, result.to_html):
        with pytest.raises(SaveError, match=r"nowhere/a' cannot be written: No such file or directory"):
            write(tmp_path / "nowhere" / "a")
