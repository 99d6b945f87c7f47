"""``--images``: folders of pictures on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from disparse_structured.cli import main, options
from disparse_structured.data import preprocessing
from tests.support.command_line import TINY, refusal

HOW = ("--size", "16x20", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, and a folder of 20 pictures and a damaged one."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(TINY)
    (folder / "photos" / "more").mkdir(parents=True)
    for number in range(20):
        place = folder / "photos" / ("more" if number % 2 else ".")
        Image.effect_noise((24, 18), 60 + number).convert("RGB").save(place / f"{number}.png")
    (folder / "photos" / "torn.jpg").write_bytes(b"\xff\xd8")
    return folder


def test_prune_reads_a_folder_and_shows_what_the_network_saw(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = project / "out"
    given = ["--model", f"{project}/net.py:build", "--images", str(project / "photos"), *HOW]
    assert main(["prune", *given, "--macs", "0.5", "--no-onnx", "--out", str(out), "--json"]) == 0

    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["files"][-1] == "inputs.png"
    facts = document["report"]["images"]
    assert facts["inputs"] == 20
    assert facts["preprocessing"]["size"] == [16, 20]
    assert list(facts["skipped"]) == ["torn.jpg"]
    assert shown.err.count("disparse: warning: 1 file was skipped: torn.jpg") == 1
    with Image.open(out / "inputs.png") as sheet:
        assert sheet.width > 160


def test_the_choices_are_those_of_the_preprocessing() -> None:
    assert (options.RESIZES, options.INTERPOLATIONS) == (preprocessing.RESIZES, preprocessing.INTERPOLATIONS)


def test_images_draws_the_sheet_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = project / "sheet.png"
    assert main(["images", "--images", str(project / "photos"), *HOW, "--sheet", str(sheet)]) == 0
    shown = capsys.readouterr().out
    assert "20 inputs: 16x20 RGB, center crop, bilinear" in shown
    assert sheet.is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "photos/0.png"], "is a file. Name the folder that holds it: 'photos'"),
        (["--images", "a.npy"], "is a file. Give it as --data"),
        (["--images", "photos/*.png"], "is a pattern. Name the folder alone"),
        (["--images", "fotos"], "there is no such folder"),
        (["--images", "photos", "--data", "a.npy"], "--data and --images both give inputs"),
        (["--data", "a.npy", "--size", "32"], "--size belongs to --images"),
        (["--images", "photos", "--size", "0"], "such as 224"),
        (["--images", "photos", "--mean", "0.5,0.5"], "three numbers"),
        (["--images", "photos", "--mean", "0.5,x,1"], "three numbers"),
        ([], "--images, a folder of pictures, or --data"),
        (["--images", "photos"], "size and mean and std must be given"),
        (["--images", "photos", "--preprocessing", "net.py"], "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_read_is_refused(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(project)
    (project / "a.npy").write_bytes(b"")
    assert said in refusal(capsys, "prune", "--model", "net.py:build", *words, "--macs", "0.5", "--out", "x")
    assert not (project / "x").exists()
