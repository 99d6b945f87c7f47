"""Settings files: what the options say, written, read, refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import Timeout

from disparse_structured.cli import main
from disparse_structured.cli.locking import alone_in
from disparse_structured.cli.parsers import build_parser
from disparse_structured.cli.settings import settings_text, with_settings
from tests.support.command_line import TINY, document_of, refusal

LINES = [
    "prune --model net.py:build --data a.npy --macs 0.5 --out small",
    "prune --model n:b --images photos --size 16x20 --mean 0,0,0 --std 1,1,1 --latency 12ms --out o --int8",
    "prune --model n:b --data a.npy --latency 0.5 --out o --protect a* b --round-to 8 --drop-unused",
    "prune --model n:b --data a.npy --macs 0.5 --out o --priority a=2 --priority b=0.5 --latency --threads 2",
    "prune --model n:b --data a.npy --macs 0.5 --out o --tolerance a=1e-3 --no-onnx --no-verify --samples 8",
    "prune --model n:b --data a.npy --parameters 500 --out o --int8 --int8-tolerance 1 --int8-tolerance a=1",
    "train --model n:b --data n:d --tasks depth=0,label=b.c --regime static --epochs 2 --macs 0.5 --out o",
]


@pytest.mark.parametrize("line", LINES)
def test_a_written_file_says_the_same_as_the_options(line: str, tmp_path: Path) -> None:
    parser = build_parser()
    arguments = parser.parse_args(line.split())
    file = tmp_path / "settings.toml"
    file.write_text(settings_text(arguments, parser))

    again = parser.parse_args(with_settings([arguments.command, str(file)], parser))

    assert vars(again) == vars(arguments)


def parsed(tmp_path: Path, text: str, *words: str) -> dict[str, object]:
    (tmp_path / "s.toml").write_text(text)
    parser = build_parser()
    return vars(parser.parse_args(with_settings(["prune", str(tmp_path / "s.toml"), *words], parser)))


TEXT = """
model = "net.py:build"
data = "a.npy"
macs = "40%"
out = "small"
protect = ["a", "b"]
tolerance = {near = 0.1, far = 0.2}
onnx = false
"""


def test_a_file_may_hold_tables_lists_and_percentages(tmp_path: Path) -> None:
    found = parsed(tmp_path, TEXT)
    assert found["macs"] == 0.4
    assert found["protect"] == ["a", "b"]
    assert found["tolerance"] == [("near", 0.1), ("far", 0.2)]
    assert found["onnx"] is False


def test_options_win_over_the_file(tmp_path: Path) -> None:
    found = parsed(tmp_path, TEXT, "--protect", "c", "--parameters", "0.3", "--onnx", "--images", "photos")
    assert found["protect"] == ["c"]
    assert (found["macs"], found["parameters"]) == (None, 0.3)
    assert (found["data"], found["images"]) == (None, "photos")
    assert found["onnx"] is True
    assert parsed(tmp_path, TEXT, "--macs=0.7")["macs"] == 0.7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mac = 0.5", "'mac' is not an option. Did you mean 'macs'"),
        ("min_width = 2", "Did you mean 'min-width'"),
        ("command = 'train'", "another command"),
        ("macs = [", "cannot be read as TOML"),
        ("macs = true", "macs is true. Give a value"),
        ("int8 = 'yes'", "int8 is 'yes'. Give true or false"),
        ("macs = {a = 1}", "Give a string, a number"),
        ("macs = 2.5", "2.5 is neither a fraction"),
        ("example = '2x3'", "'example' is not an option"),
        ("quiet = true", "'quiet' is not an option"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text(text)
    assert said in refusal(capsys, "prune", str(tmp_path / "s.toml"))


def test_a_file_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'no.toml' does not exist" in refusal(capsys, "prune", "no.toml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a network in it."""
    (tmp_path / "net.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GIVEN = "prune --model net.py:build --data net.py:images --macs 50% --method disparse --no-onnx --out a"


def test_a_run_is_repeated_by_what_it_wrote(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIVEN.split(), "--samples", "16", "--seed", "3", "--json"]) == 0
    first = document_of(capsys)
    (project / "a" / "settings.toml").rename(project / "again.toml")

    assert main(["prune", "again.toml", "--out", "b", "--json"]) == 0
    second = document_of(capsys)

    assert second["report"]["costs"] == first["report"]["costs"]
    assert (project / "a" / "plan.json").read_bytes() == (project / "b" / "plan.json").read_bytes()


def test_a_command_line_that_is_not_unicode_is_written(project: Path) -> None:
    out = os.fsdecode(b"a\xff")
    assert main([*GIVEN.split()[:-1], out]) == 0
    assert 'out = "a\ufffd"' in (project / out / "settings.toml").read_text(encoding="utf-8")


def test_one_run_at_a_time_writes_a_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone_in(project / "a"):
        assert "another run is writing to 'a'" in refusal(capsys, *GIVEN.split())
        assert not (project / "a").exists()
    assert main(GIVEN.split()) == 0


def test_a_lock_of_the_users_own_code_is_not_taken_for_that_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(Timeout), alone_in(tmp_path):
        raise Timeout("a cache")
    with alone_in(tmp_path):
        pass


def test_save_settings_writes_the_file_and_nothing_else(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "prune --model net.py:build --data net.py:images --macs 0.5 --out a --save-settings s.toml"
    assert main(given.split()) == 0
    assert sorted(path.name for path in project.iterdir()) == ["net.py", "s.toml"]
    assert "'no/s.toml' cannot be written" in refusal(capsys, *given.replace("s.toml", "no/s.toml").split())
