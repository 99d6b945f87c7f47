"""`make release` refuses what must not be released, before it builds anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RELEASE = Path(__file__).resolve().parents[2] / ".ci" / "release.py"
READY = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-01-31

### Added

- A thing.

## [1.1.0] - 2025-12-01
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository whose version 1.2.0 can be released."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "thing"\nversion = "1.2.0"\n', encoding="utf-8"
    )
    commit(tmp_path, READY)
    return tmp_path


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


def commit(root: Path, changelog: str) -> None:
    (root / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "A change")


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RELEASE), "--check", "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_clean_tree_with_an_entry_can_be_released(tree: Path) -> None:
    done = check(tree)

    assert (done.returncode, done.stdout) == (0, "== 1.2.0 can be released\n")


def test_it_can_be_repeated_after_the_tag(tree: Path) -> None:
    git(tree, "tag", "--annotate", "v1.2.0", "--message", "1.2.0")

    assert check(tree).returncode == 0


def test_a_changed_tree_is_refused(tree: Path) -> None:
    (tree / "left.py").touch()

    assert refusal(tree) == "The tree is not clean. Commit or remove:\n?? left.py\n"


@pytest.mark.parametrize(
    ("changelog", "told"),
    [
        (READY.replace("1.2.0", "1.1.9"), "The newest entry of CHANGELOG.md is '[1.1.9] - 2026-01-31'."),
        (READY.replace(" - 2026-01-31", ""), "The newest entry of CHANGELOG.md is '[1.2.0]'."),
        (READY.replace("### Added\n\n- A thing.\n\n", ""), "'[1.2.0] - 2026-01-31', without a line"),
        (READY.replace("## [1.2.0]", "- More.\n\n## [1.2.0]"), "Move them to an entry for 1.2.0."),
        ("# Changelog\n", "CHANGELOG.md has no entry."),
    ],
)
def test_a_changelog_without_the_version_is_refused(tree: Path, changelog: str, told: str) -> None:
    commit(tree, changelog)

    assert told in refusal(tree)


def test_a_version_that_was_released_is_refused(tree: Path) -> None:
    git(tree, "tag", "v1.2.0")
    commit(tree, READY + "\n- Old.\n")

    assert "The tag v1.2.0 is on another commit" in refusal(tree)


def refusal(root: Path) -> str:
    done = check(root)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr
