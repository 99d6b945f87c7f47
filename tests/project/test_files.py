"""Files that cannot be written: named, and what was there remains."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import disparse_structured as ds
from disparse_structured.errors import SaveError
from disparse_structured.files import remove_derived
from disparse_structured.pipeline import PruningResult


@pytest.fixture(scope="module")
def result() -> PruningResult:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 4, 3))
    return ds.prune(model.eval(), torch.randn(8, 3, 10, 10), macs=0.5, method=ds.DiSparse(), refit=None)


_FULL = """
import resource, signal, sys
from pathlib import Path
import torch
import disparse_structured as ds
from disparse_structured.errors import SaveError
from disparse_structured.files import write_text

folder = Path(sys.argv[1])
model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 4, 3))
result = ds.prune(model.eval(), torch.randn(8, 3, 10, 10), macs=0.5, method=ds.DiSparse(), refit=None)
result.save(folder)
before = {path.name: path.read_bytes() for path in folder.iterdir()}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
for write in (lambda: result.save(folder), lambda: write_text(folder / "report.json", "x" * 4096)):
    try:
        write()
    except SaveError as error:
        print(error)
print("unchanged:", before == {path.name: path.read_bytes() for path in folder.iterdir()})
"""
"""On a disk where no file may be larger than 1 kB. The limit holds for a whole process: this has its own."""


def test_a_full_disk_is_named_and_the_old_folder_remains(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", _FULL, tmp_path], capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
    saving, writing, unchanged = ran.stdout.splitlines()
    assert re.search(r"weights\.safetensors' cannot be written: .*too large", saving)
    assert re.search(r"report\.json' cannot be written: File too large", writing)
    assert unchanged == "unchanged: True"


def test_a_folder_that_cannot_be_created_is_named(result: PruningResult, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for place in (tmp_path / "taken", tmp_path / "taken" / "deeper"):
        with pytest.raises(SaveError, match=r"the folder .*taken.* cannot be created"):
            result.save(place)


def test_what_is_stale_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx", "report.html", "settings.toml", "picture.png", "mine.txt"):
        (tmp_path / name).touch()
    remove_derived(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    (tmp_path / "report.html").mkdir()
    with pytest.raises(SaveError, match=r"report\.html' of an earlier run cannot be removed"):
        remove_derived(tmp_path)


def test_a_file_in_a_folder_that_does_not_exist_is_named(result: PruningResult, tmp_path: Path) -> None:
    for write in (result.plan.save, result.to_html):
        with pytest.raises(SaveError, match=r"nowhere/a' cannot be written: No such file or directory"):
            write(tmp_path / "nowhere" / "a")
