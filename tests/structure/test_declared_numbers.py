"""Numbers that only other methods than ``forward`` compute with, declared by entry points of a package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.errors import ExtensionError
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.module import cut
from disparse_structured.tasks import Task
from tests.support.plans import random_keep, snapshot

Install = Callable[..., None]
INPUTS = torch.randn(3, 5)
TASKS = (Task("out", lambda output: output),)


class Told(nn.Module):
    """Two hidden layers of eight, and eights that count the first, the second, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.one, self.other, self.nothing = 8, 8, 8
        self.table = [{"width": 8, "name": "first"}, {"width": 8, "name": "second"}]
        self.info = SimpleNamespace(widths=(3, 8))

    def hidden(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        first = torch.tanh(self.first(x))
        return first, {"second": torch.tanh(self.second(first))}

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x)[1]["second"])

    def told(self) -> dict[str, Any]:
        return {
            "one": self.one,
            "other": self.other,
            "nothing": self.nothing,
            "table": [each["width"] for each in self.table],
            "info": self.info.widths,
        }


class Reads(Told):
    """``forward`` computes with a number that is declared to count something else."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x)[1]["second"].view(-1, self.one))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package whose entry point ``probe`` is the function ``numbers`` of the given lines."""

    def installed(name: str, *lines: str, entry: str = "numbers") -> None:
        head = ["from disparse_structured.structure import SizeDeclaration", "", "def numbers(module):"]
        (tmp_path / f"{name}.py").write_text("\n".join([*head, *(f"    {line}" for line in lines)]) + "\n")
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[disparse_structured.sizes]\nprobe = {name}:{entry}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return installed


def halves(model: nn.Module) -> tuple[Any, Structure, dict[str, int]]:
    """About half of ``model``, its structure, and the widths that are left."""
    structure = analyse(model, INPUTS, TASKS)
    pruned: Any = cut(model, structure, random_keep(structure, 3))
    return pruned, structure, {"first": pruned.first.out_features, "second": pruned.second.out_features}


DECLARED = {
    "one": [
        'yield SizeDeclaration("one", "first.weight")',
        'yield SizeDeclaration("one", "hidden", -1)',
        'yield SizeDeclaration("one", "first.forward", {3: 0, 2: 1})',
        'yield SizeDeclaration("one", "second.weight", 1)',
    ],
    "other": [
        'yield SizeDeclaration("other", "hidden", 1, leaf=1)',
        'yield SizeDeclaration("other", "out.weight", 1)',
    ],
    "table": ['yield SizeDeclaration("table", "hidden", 1, (1, "width"), leaf=1)'],
    "info": ['yield SizeDeclaration("info", "second.bias", keys=("widths", -1))'],
}


@pytest.mark.parametrize(
    ("attribute", "line"), [(attribute, line) for attribute, lines in DECLARED.items() for line in lines]
)
def test_a_declared_number_follows_what_it_counts(attribute: str, line: str, install: Install) -> None:
    name = f"follows_{abs(hash(line))}"
    install(name, 'if type(module).__name__ == "Told":', f"    {line}")
    model = Told()
    before = snapshot(model)
    pruned, _, widths = halves(model)
    assert widths["first"] != widths["second"]
    assert max(widths.values()) < 8
    wanted = {
        "one": widths["first"],
        "other": widths["second"],
        "table": [8, widths["second"]],
        "info": (3, widths["second"]),
    }
    dense = Told().told()
    assert pruned.told() == {**dense, attribute: wanted[attribute]}
    assert snapshot(model) == before
    assert model.told() == dense


def test_of_several_the_first_counts_that_fits(install: Install) -> None:
    install(
        "several",
        'if type(module).__name__ == "Told":',
        '    yield SizeDeclaration("none", "first.weight")',
        '    yield SizeDeclaration("one", "missing.weight")',
        '    yield SizeDeclaration("one", "told")',  # is not called
        '    yield SizeDeclaration("one", "out.weight", 0)',  # of two positions
        '    yield SizeDeclaration("one", "first.weight", 2)',  # no such dimension
        '    yield SizeDeclaration("one", "hidden", 1, leaf=7)',  # no such output
        '    yield SizeDeclaration("one", "second.weight")',
        '    yield SizeDeclaration("one", "first.weight")',
    )
    pruned, _, widths = halves(Told())
    assert pruned.told() == {**Told().told(), "one": widths["second"]}


def test_numbers_of_a_module_inside(install: Install) -> None:
    install(
        "inside", 'if type(module).__name__ == "Told":', '    yield SizeDeclaration("one", "first.weight")'
    )

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.told = Told()

        def forward(self, x: Tensor) -> Tensor:
            return self.told(x)

    structure = analyse(Outside(), INPUTS, TASKS)
    pruned: Any = cut(Outside(), structure, random_keep(structure, 3))
    assert pruned.told.one == pruned.told.first.out_features < 8


def test_what_a_method_hard_codes_stays(install: Install) -> None:
    install(
        "hard_coded",
        'if type(module).__name__ == "Told":',
        '    yield SizeDeclaration(None, "second.weight", 1)',
    )
    structure = analyse(Told(), INPUTS, TASKS)
    assert [(group.name, group.units) for group in structure.groups] == [("second", 8)]
    assert ("a method hard-codes the number 8", "weight", "second") in [
        (pin.reason, pin.operator, pin.module) for pin in structure.pinned
    ]


def test_a_number_that_forward_reads_for_another_width_binds_the_two(install: Install) -> None:
    install(
        "binds", 'if type(module).__name__ == "Reads":', '    yield SizeDeclaration("one", "first.weight")'
    )
    pruned, structure, widths = halves(Reads())
    assert [set(constraint.groups) for constraint in structure.constraints] == [{"first", "second"}]
    assert pruned.one == widths["first"] == widths["second"] < 8
    assert pruned(INPUTS).shape == (3, 2)


def test_an_entry_point_that_is_not_there_is_named(install: Install) -> None:
    install("not_there", "return []", entry="no_such_function")
    with pytest.raises(
        ExtensionError,
        match=r"entry point 'probe' = 'not_there:no_such_function' of not_there \(group "
        r"'disparse_structured.sizes'\) cannot be loaded \(AttributeError: .*\). Repair or uninstall",
    ):
        analyse(Told(), INPUTS, TASKS)


def test_an_entry_point_that_fails_is_named_with_the_module(install: Install) -> None:
    install("failing", "return module.no_such_width")
    with pytest.raises(
        ExtensionError, match=r"'failing:numbers' of failing .* fails for module '' \(Told\): AttributeError"
    ):
        analyse(Told(), INPUTS, TASKS)


def test_an_entry_point_that_gives_something_else_is_named(install: Install) -> None:
    install("something_else", 'return ["one"] if type(module).__name__ == "Linear" else []')
    with pytest.raises(ExtensionError, match=r"returns 'one' for module 'first' \(Linear\). Let it return"):
        analyse(Told(), INPUTS, TASKS)


def test_an_entry_point_that_is_no_function_is_named(install: Install) -> None:
    install("no_function", "return []", entry="__name__")
    with pytest.raises(ExtensionError, match=r"is of type str. Point it at a function that takes a module"):
        analyse(Told(), INPUTS, TASKS)
