"""Plans as data: made, printed, written, read back, and refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import make_plan
from disparse_structured.decision.plan import GroupPlan, Plan, Provenance
from disparse_structured.errors import LoadError, PlanError
from disparse_structured.structure.groups import RatioConstraint
from tests.support.synthetic import Chain, chain


def two_layers(**options: Any) -> Chain:
    return chain([6, 4], reach=[("seg", "depth"), ("depth",)], tasks=("seg", "depth"), **options)


def small_plan(structure: Chain | None = None) -> Plan:
    structure = structure or two_layers()
    keep = torch.tensor([1, 0, 0, 0, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    votes = torch.ones(2, 10, dtype=torch.bool)
    votes[0, :4] = False
    votes[1, [1, 2, 3, 5, 9]] = False
    return Plan.from_keep(
        structure,
        keep,
        votes=votes,
        budget=Budget(macs=0.5, round_to=1, protected="stem*").facts(),
        provenance=Provenance(
            "DiSparse", "Magnitude(p=2)", "Unanimous()", "GlobalRanking()", 0.5, 7, (("torch", "2.15.0"),)
        ),
    )


SMALL_JSON = """{
  "budget": {
    "cost": "macs",
    "floor": 0.1,
    "limit": 0.5,
    "min_width": 1,
    "of": "MACs()",
    "protected": [
      "stem*"
    ],
    "round_to": 1
  },
  "fingerprint": "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffee",
  "groups": [
    {
      "kind": "channel",
      "name": "net.layer0",
      "reach": [
        "seg",
        "depth"
      ],
      "removed": "1-3,5",
      "units": 6,
      "votes": {
        "depth": "1-3,5",
        "seg": "0-3"
      }
    },
    {
      "kind": "channel",
      "name": "net.layer1",
      "reach": [
        "depth"
      ],
      "removed": "3",
      "units": 4,
      "votes": {
        "depth": "3"
      }
    }
  ],
  "predicted": {
    "macs": {
      "after": 12.0,
      "before": 42.0,
      "unit": "MACs"
    },
    "parameters": {
      "after": 12.0,
      "before": 42.0,
      "unit": "parameters"
    }
  },
  "provenance": {
    "arbiter": "Unanimous()",
    "criterion": "Magnitude(p=2)",
    "method": "DiSparse",
    "ranking": "GlobalRanking()",
    "ratio": 0.5,
    "seed": 7,
    "versions": {
      "torch": "2.15.0"
    }
  },
  "schema": 2,
  "tasks": [
    "seg",
    "depth"
  ]
}"""


def test_the_json_layout_is_fixed() -> None:
    """A change here is a change of the schema: raise PLAN_SCHEMA with it."""
    assert small_plan().to_json() == SMALL_JSON
    assert Plan.from_json(SMALL_JSON) == small_plan()
    assert small_plan().hash == "416ab083616e44b6d0fa437f7efdc500d47d40723e3d8660db300a8ebba59711"


@settings(max_examples=40)
@given(data=st.data(), widths=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_any_plan_round_trips_byte_for_byte(data: st.DataObject, widths: list[int]) -> None:
    structure = chain(widths)
    bits = st.lists(st.booleans(), min_size=structure.units, max_size=structure.units)
    keep = torch.tensor(data.draw(bits))
    for group in structure.groups:
        keep[group.start] = True
    votes = torch.tensor([data.draw(bits) for _ in structure.tasks])
    plan = Plan.from_keep(structure, keep, votes=votes)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.hash == plan.hash
    assert torch.equal(again.keep(structure), keep)
    assert {name: list(units) for name, units in plan.removals.items()} == {
        group.name: (~keep[group.slice]).nonzero().flatten().tolist()
        for group in structure.groups
        if not keep[group.slice].all()
    }


def test_a_plan_is_immutable_and_can_be_copied() -> None:
    plan = small_plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.fingerprint = "other"  # type: ignore[misc]
    plan.removals["net.layer0"] = ()
    assert plan.removals["net.layer0"] == (1, 2, 3, 5)
    assert copy.deepcopy(plan) == pickle.loads(pickle.dumps(plan)) == plan
    assert len({plan, small_plan()}) == 1


def test_another_decision_has_another_hash() -> None:
    structure = two_layers()
    one, other = Plan.of(structure, {"net.layer0": [1]}), Plan.of(structure, {"net.layer0": [2]})
    assert one.hash != other.hash
    assert one.hash == Plan.of(two_layers(), {"net.layer0": (1,)}).hash


def test_a_plan_by_hand_takes_units_in_any_order_and_of_any_integer_type() -> None:
    structure = two_layers()
    plan = Plan.of(structure, {"net.layer0": torch.tensor([4, 0, 2]), "net.layer1": []})
    assert plan.removals == {"net.layer0": (0, 2, 4)}
    assert plan.keep(structure).tolist() == [False, True, False, True, False] + [True] * 5
    assert (plan.costs["macs"].before, plan.costs["macs"].after) == (42.0, 21.0)
    assert plan.budget == ()


@pytest.mark.parametrize(
    ("removals", "text"),
    [
        ({"net.layer0": [6]}, r"'net.layer0': unit 6 is out of range. It has units 0 to 5"),
        ({"net.layer0": [-1]}, r"unit -1 is out of range"),
        ({"net.layer0": [1, 1]}, r"unit 1 is listed twice"),
        ({"net.layer0": [0.5]}, r"unit indices must be whole numbers"),
        ({"net.layer1": range(4)}, r"'net.layer1': all 4 units would be removed. Keep at least one"),
        ({"net.layr1": [0]}, r"no channel group 'net.layr1'. Did you mean 'net.layer1'"),
    ],
)
def test_a_bad_plan_by_hand_is_refused(removals: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        Plan.of(two_layers(), removals)


def test_a_violated_count_constraint_is_refused_with_its_reason() -> None:
    tied = RatioConstraint(("net.layer0", "net.layer1"), (3, 2), "forward splits the width 3:2")
    structure = two_layers(constraints=(tied,))
    assert Plan.of(structure, {"net.layer0": [0, 1, 2], "net.layer1": [0, 1]}).removals
    assert Plan.of(structure, {}).removals == {}
    for removals in ({"net.layer0": [0]}, {"net.layer0": [0, 1, 2], "net.layer1": [0]}):
        with pytest.raises(PlanError, match=r"one whole number times \[3, 2\]: forward splits the width 3:2"):
            Plan.of(structure, removals)


def test_the_dense_model_satisfies_every_constraint() -> None:
    """A count that the dense widths do not obey forbids changes, not the model as it is."""
    structure = two_layers(
        constraints=(RatioConstraint(("net.layer0", "net.layer1"), (1, 1), "equal widths"),)
    )
    assert Plan.of(structure, {}).removals == {}
    assert Plan.of(structure, {"net.layer0": [0, 1], "net.layer1": []}).removals
    with pytest.raises(PlanError, match="equal widths"):
        Plan.of(structure, {"net.layer0": [0]})


def test_a_plan_without_a_group_leaves_it_and_what_is_bound_to_it_whole() -> None:
    tied = RatioConstraint(("net.layer0", "net.layer1"), (1, 1), "equal widths")
    structure = chain([4, 4, 4], constraints=(tied,))
    plan = Plan.of(structure, {"net.layer0": [0], "net.layer1": [3], "net.layer2": [1, 2]})
    rest = plan.without(structure, ["net.layer1"])
    assert rest == Plan.of(structure, {"net.layer2": [1, 2]})
    assert plan.without(structure, []) == plan
    with pytest.raises(PlanError, match=r"no channel group 'net.layer9'"):
        plan.without(structure, ["net.layer9"])


def test_keep_must_be_one_bool_a_unit() -> None:
    for keep in (torch.ones(9, dtype=torch.bool), torch.ones(10)):
        with pytest.raises(PlanError, match=r"expected torch.bool \[10\]"):
            Plan.from_keep(two_layers(), keep)


def with_group(plan: Plan, **changes: Any) -> Plan:
    return dataclasses.replace(plan, groups=(dataclasses.replace(plan.groups[0], **changes), plan.groups[1]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda p: dataclasses.replace(p, fingerprint="beef" * 16),
            r"another model: its fingerprint is beefbeef",
        ),
        (lambda p: dataclasses.replace(p, schema=1), r"schema version 1, but this release reads version 2"),
        (lambda p: dataclasses.replace(p, groups=p.groups + p.groups[:1]), r"is in the plan twice"),
        (lambda p: with_group(p, name="net.head"), r"no channel group 'net.head'"),
        (lambda p: with_group(p, units=8), r"the plan says 8 units, this model has 6"),
        (lambda p: with_group(p, removed=(2, 6)), r"unit 6 is out of range"),
        (lambda p: with_group(p, removed=(-1, 2)), r"unit -1 is out of range"),
        (lambda p: with_group(p, removed=(True,)), r"unit True is out of range"),
        (lambda p: with_group(p, removed=(torch.tensor(1),)), r"unit tensor\(1\) is out of range"),
        (lambda p: with_group(p, removed=(2, 2)), r"unit 2 is listed twice"),
        (lambda p: with_group(p, removed=(3, 2)), r"unit 2 follows 3"),
        (lambda p: with_group(p, votes=(("seg", (9,)),)), r"unit 9 is out of range"),
        (lambda p: with_group(p, removed=tuple(range(6))), r"all 6 units would be removed"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: Any, text: str) -> None:
    structure = two_layers()
    plan = small_plan(structure)
    plan.check(structure)
    for use in (Plan.check, Plan.keep):
        with pytest.raises(PlanError, match=text):
            use(change(plan), structure)


def edited(path: list[str | int], value: object) -> str:
    data = json.loads(SMALL_JSON)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the plan is not JSON"),
        (
            edited(["predicted", "macs", "after"], float("nan")),
            "the plan is not JSON in UTF-8: NaN is not a number",
        ),
        ("[]", "schema version None, but this release reads version 2"),
        (edited(["schema"], 1), "schema version 1, but this release reads version 2. Make the plan again"),
        (edited(["schema"], True), "schema version True"),
        (edited(["tasks"], None), "entry 'tasks' must be of type list"),
        (edited(["tasks"], [1]), "entry 'tasks' must be of type str"),
        (edited(["predicted", "macs"], 3), "entry 'macs' must be of type dict"),
        (edited(["predicted", "macs", "after"], "few"), "entry 'after' must be of type float"),
        (edited(["groups", 0], "net.layer0"), "entry 'name' must be of type str, found None"),
        (edited(["groups", 0, "units"], True), "entry 'units' must be of type int, found True"),
        (edited(["groups", 0, "kind"], "row"), "kind must be one of channel, bundle, head, found 'row'"),
        (
            edited(["groups", 0, "votes"], {"boxes": "1"}),
            "a vote of 'boxes', which is not a task of the plan",
        ),
        (edited(["groups", 0, "removed"], "1,-2"), "expected a list of units such as '0-3,7', found '1,-2'"),
        (edited(["groups", 0, "removed"], "0-99999999999999"), "unit 99999999999999 is out of range"),
        (edited(["groups", 0, "removed"], "3,3"), "unit 3 is listed twice"),
        (edited(["groups", 0, "votes"], {"seg": "3,1"}), "unit 1 follows 3"),
        (edited(["budget", "limit"], {}), "budget entry 'limit' must be a finite number, a string or a list"),
        (edited(["budget", "of"], "\ud800"), "the plan is not JSON in UTF-8: 'utf-8' codec can't encode"),
        (
            edited(["groups", 0, "removed"], "2" * 5000),
            "expected a list of units such as '0-3,7', found '222",
        ),
        (SMALL_JSON.replace("12.0", "1e999"), "entry 'after' must be a finite number"),
        (edited(["predicted", "macs"], {"before": 2, "after": 1}), "entry 'unit' must be of type str"),
        ("[" * 100_000, "the plan is not JSON in UTF-8: maximum recursion depth exceeded"),
        (edited(["provenance", "seed"], "x"), "entry 'seed' must be of type int"),
    ],
)
def test_damaged_json_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert message in str(caught.value)


def test_save_and_load(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan = small_plan()
    plan.save(file)
    first = file.read_bytes()
    assert Plan.load(file) == plan
    Plan.load(str(file)).save(file)
    assert file.read_bytes() == first
    assert first.endswith(b"}\n")


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"nowhere\.json' cannot be read"):
        Plan.load(tmp_path / "nowhere.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(LoadError, match="binary' cannot be read"):
        Plan.load(tmp_path / "binary")


def test_the_table_says_who_voted_what_and_what_it_saves() -> None:
    text = str(small_plan())
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["net.layer0"] == ["net.layer0", "channel", "all", "6", "→", "2", "67%", "67%"]
    assert lines["net.layer1"] == ["net.layer1", "channel", "depth", "4", "→", "3", "-", "25%"]
    assert "5 of 10 units are removed; 0 of 2 groups are unchanged" in text
    assert "MACs        42 → 12 (28.6%)" in text
    assert "method DiSparse, criterion Magnitude(p=2), arbiter Unanimous(), ranking Global" in text
    assert text == "\n".join(line.rstrip() for line in text.splitlines())


def test_the_table_leaves_out_groups_that_stay_and_takes_names_literally() -> None:
    structure = two_layers()
    plan = Plan.of(structure, {"net.layer1": [0]})
    assert "net.layer0" not in str(plan)
    assert "1 of 2 groups are unchanged" in str(plan)
    odd = dataclasses.replace(plan, groups=(GroupPlan("a[red]b", "channel", 4, (), (1,)),))
    assert "a[red]b" in str(odd)
    assert "none" in str(odd)


def test_a_large_plan_stays_small_on_disk() -> None:
    structure = chain([512] * 8)
    plan = make_plan(structure, torch.arange(4096.0).repeat(3, 1), Budget(macs=0.5))
    assert len(plan.to_json()) < 6000
    assert plan.provenance.versions
    assert "torch" in dict(plan.provenance.versions)
