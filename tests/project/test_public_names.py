"""The door: which names there are, and what entering costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import disparse_structured as ds

MODULES = {
    "arbiters": "disparse_structured.decision.arbiters",
    "costs": "disparse_structured.decision.costs",
    "criteria": "disparse_structured.scoring.criteria",
    "rankings": "disparse_structured.decision.rankings",
    "refits": "disparse_structured.refit",
}

MEMBERS = {
    "arbiters": ("Majority", "Minimax", "Priority", "Tolerance", "Unanimous", "WeightedMean"),
    "costs": (),
    "criteria": ("Fisher", "Magnitude", "Random", "SNIP", "Taylor"),
    "rankings": ("GlobalRanking", "LayerRanking", "PerCostRanking"),
    "refits": ("Affine", "BatchNormStatistics", "LeastSquares", "ModelFolding"),
}
"""Some of what a family must hold."""


def test_there_are_at_most_sixteen_names() -> None:
    assert len(ds.__all__) == len(set(ds.__all__)) <= 16
    assert ds.__all__ == sorted(ds.__all__)


@pytest.mark.parametrize("name", ds.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(ds, name)

    assert found.__doc__
    assert getattr(ds, name) is found  # the same again
    assert isinstance(found, ModuleType) == (name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_family_is_the_module_where_its_members_live(name: str) -> None:
    family = getattr(ds, name)

    assert family.__name__ == MODULES[name]
    assert all(hasattr(family, member) for member in MEMBERS[name])


def test_dir_lists_all_names() -> None:
    assert {*ds.__all__, "__version__"} <= set(dir(ds))
    assert dir(ds) == sorted(set(dir(ds)))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'disparse_structured' has no attribute 'shrink'"):
        ds.shrink  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'shrink'"):
        from disparse_structured import shrink  # noqa: F401


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert ds.__version__ == version("disparse-structured")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, disparse_structured\n"
        "dir(disparse_structured)\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'rich', 'onnx') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
