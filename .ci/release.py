"""Builds sdist and wheel of the commit that is checked out, and checks them as a user would install them.

A tree that is not clean is refused, and so is a version without a dated entry in the changelog. Both files
are built from a fresh clone, checked by twine, and installed in empty environments, with and without extras,
where ``check_install.py`` runs. ``--check`` stops before anything is built. See docs/releasing.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXTRAS = ("", "onnx", "all")


def main() -> None:
    """Runs all steps; the first that fails ends the program with what to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="stop before anything is built")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the repository")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where the two files are written")
    given = parser.parse_args()
    version = releasable(given.root)
    print(f"== {version} can be released", flush=True)
    if given.check:
        return
    files = build(given.root, given.out)
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    for file in files:
        for extra in EXTRAS:
            print(f"== {file.name}[{extra}] in an empty environment", flush=True)
            install_and_check(file, extra, version)
    print(f"== {version} is ready: {', '.join(map(str, files))}")


def releasable(root: Path) -> str:
    """The version of the tree at ``root``, if it can be released."""
    changed = git(root, "status", "--porcelain")
    if changed:
        sys.exit(f"The tree is not clean. Commit or remove:\n{changed}")
    version = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
    sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    entries = {head: body.strip() for head, _, body in (section.partition("\n") for section in sections)}
    if entries.pop("[Unreleased]", ""):
        sys.exit(f"CHANGELOG.md has lines under [Unreleased]. Move them to an entry for {version}.")
    if not entries:
        sys.exit(f"CHANGELOG.md has no entry. Write '## [{version}] - YYYY-MM-DD', and what changed.")
    newest, body = next(iter(entries.items()))
    if not re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", newest):
        sys.exit(f"The newest entry of CHANGELOG.md is {newest!r}. Write '## [{version}] - YYYY-MM-DD'.")
    if not body:
        sys.exit(f"The newest entry of CHANGELOG.md is {newest!r}, without a line on what changed.")
    tag = f"v{version}"
    if git(root, "tag", "--list", tag) and git(root, "rev-parse", f"{tag}^{{}}") != git(
        root, "rev-parse", "HEAD"
    ):
        sys.exit(f"The tag {tag} is on another commit: {version} was released. Raise the version.")
    return version


def build(root: Path, out: Path) -> list[Path]:
    """Builds the sdist from a fresh clone of ``root``, and the wheel from the sdist."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        run("git", "clone", "--quiet", root, Path(folder, "tree"))
        run(sys.executable, "-m", "build", "--outdir", out, Path(folder, "tree"))
    return sorted(out.iterdir())


def install_and_check(file: Path, extra: str, version: str) -> None:
    """Installs ``file`` with ``extra`` in an environment of its own, and runs the check there."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "environment", "bin", "python")
        run("uv", "venv", "--quiet", "--python", sys.executable, python.parents[1])
        wanted = f"disparse-structured{f'[{extra}]' if extra else ''} @ {file.resolve().as_uri()}"
        run("uv", "pip", "install", "--quiet", "--python", python, wanted)
        run(python, "-I", HERE / "check_install.py", version, extra, cwd=folder)


def git(root: Path, *arguments: str) -> str:
    """What git prints in ``root``."""
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def run(*command: object, cwd: str | None = None) -> None:
    """Runs ``command`` with its output shown, and ends the program if it fails."""
    if subprocess.run([str(part) for part in command], cwd=cwd).returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main()
