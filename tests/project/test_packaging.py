"""What a user installs: the wheel, built from the sdist as an index would serve it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
PACKAGE = "disparse_structured"
OUTSIDE = ("adapters", "export")  # top-level folders that are sub-packages

# One worker builds the wheel for all of these tests.
pytestmark = pytest.mark.xdist_group("wheel")


def source_files() -> set[str]:
    """The files of the package in the tree, under the names they have in a wheel."""
    folders = {PACKAGE: ROOT / PACKAGE, **{f"{PACKAGE}/{name}": ROOT / name for name in OUTSIDE}}
    found = set()
    for name, folder in folders.items():
        for here, below, files in os.walk(folder):  # does not follow the symlinks
            below[:] = [entry for entry in below if entry != "__pycache__"]
            inside = Path(name) / Path(here).relative_to(folder)
            found |= {(inside / file).as_posix() for file in files if not file.endswith(".pyc")}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from it."""
    # A copy, because building in the tree would pick up (and leave) stale build folders.
    tree = tmp_path_factory.mktemp("tree")
    for name in (
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
    ):
        shutil.copy(ROOT / name, tree)
    skip = shutil.ignore_patterns("__pycache__", ".cache", "out")
    for name in (PACKAGE, *OUTSIDE, "tests", "benchmarks", "examples", "docs", ".ci"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=skip)
    for unwanted in ("benchmarks/.cache", "benchmarks/out"):  # untracked, but there after a run
        (tree / unwanted).mkdir()
        (tree / unwanted / "left.jsonl").touch()
    # Not every checkout or archive has symlinks: the mapping in pyproject.toml must do without.
    for name in OUTSIDE:
        (tree / PACKAGE / name).unlink()
    built = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(tree)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return built


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (path,) = built.glob("*.tar.gz")
    return path


def test_sdist_is_small_and_holds_tests_and_benchmarks_but_no_results(sdist):
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert sdist.stat().st_size < 2_000_000
    assert {"tests/project/test_packaging.py", "benchmarks/harness/row.py", "docs/timm.md"} <= set(names)
    results = [name for name in names if name.startswith(("benchmarks/results", "benchmarks/out"))]
    assert results == []
    assert [name for name in names if name.endswith((".jsonl", ".safetensors"))] == []
    assert [name for name in names if name.startswith("docs/results") and not name.endswith(".md")] == [
        "docs/results",
    ]


@pytest.fixture(scope="module")
def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path, contents: list[str]) -> dict[str, list[str]]:
    (name,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        message = Parser().parsestr(archive.read(name).decode())
    return {key: message.get_all(key, []) for key in set(message.keys())}


def test_only_top_level_name_is_the_package(contents):
    tops = {name.split("/")[0] for name in contents}
    assert {top for top in tops if not top.endswith(".dist-info")} == {PACKAGE}


def test_wheel_holds_every_file_of_the_package_and_nothing_else(contents):
    shipped = {name for name in contents if ".dist-info/" not in name}
    assert shipped == source_files(), (
        "a new folder belongs into [tool.setuptools] packages of pyproject.toml, a file that is not "
        "Python into [tool.setuptools.package-data]"
    )


def test_every_folder_with_modules_is_a_package():
    files = source_files()
    folders = {name.rsplit("/", 1)[0] for name in files if name.endswith(".py")}
    assert [folder for folder in sorted(folders) if f"{folder}/__init__.py" not in files] == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_tree_shows_the_outside_folders_under_their_import_names(name):
    link = ROOT / PACKAGE / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"  # relative, so that it holds in every clone


def test_wheel_holds_the_folders_outside_the_package_and_the_type_marker(contents):
    expected = {f"{PACKAGE}/{name}/__init__.py" for name in OUTSIDE} | {f"{PACKAGE}/py.typed"}
    assert expected <= set(contents)


def test_wheel_imports_without_the_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    modules = [PACKAGE, *(f"{PACKAGE}.{name}" for name in OUTSIDE)]
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(tmp_path)!r}); "
        f"[print(importlib.import_module(name).__file__) for name in {modules!r}]"
    )
    # -I: neither the working directory nor PYTHONPATH may help.
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [Path(line).relative_to(tmp_path).as_posix() for line in done.stdout.split()]
    assert found == [f"{module.replace('.', '/')}/__init__.py" for module in modules]


def test_metadata_names_license_python_and_entry_points(metadata, contents, wheel):
    assert metadata["License-Expression"] == ["Apache-2.0"]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in contents)
    assert metadata["Requires-Python"] == [">=3.10"]
    (entry_points,) = (name for name in contents if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        told = archive.read(entry_points).decode()
    assert "disparse = disparse_structured.cli:main" in told
    assert "[disparse_structured.sizes]\ntimm = disparse_structured.adapters.timm_sizes:numbers" in told


def requirements(metadata: dict[str, list[str]]) -> list[Requirement]:
    parsed = (Requirement(line) for line in metadata["Requires-Dist"])
    return [found for found in parsed if canonicalize_name(found.name) != "disparse-structured"]


def pins() -> dict[str, Version]:
    lines = (line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(pin.name): Version(re.fullmatch(r"==(\S+)", str(pin.specifier)).group(1))
        for pin in parsed
    }


def test_constraints_pin_every_requirement_within_its_range(metadata):
    pinned = pins()
    outside = {
        str(wanted): str(pinned.get(canonicalize_name(wanted.name)))
        for wanted in requirements(metadata)
        if canonicalize_name(wanted.name) not in pinned
        or pinned[canonicalize_name(wanted.name)] not in wanted.specifier
    }
    assert outside == {}


def test_every_requirement_has_a_lower_bound(metadata):
    unbounded = [
        str(wanted)
        for wanted in requirements(metadata)
        if not any(clause.operator == ">=" for clause in wanted.specifier)
    ]
    assert unbounded == []


def test_broken_torch_is_never_selected(metadata):
    (torch,) = (wanted for wanted in requirements(metadata) if wanted.name == "torch")
    assert Version("2.13.0") not in torch.specifier
    assert Version("2.13.0+cpu") not in torch.specifier
    assert Version("2.10.0") in torch.specifier
    assert Version("2.9.1") not in torch.specifier
