"""The page of a run: what it shows, that it loads nothing, and what a damaged folder gets instead."""

from __future__ import annotations

import base64
import copy
import dataclasses
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from disparse_structured.errors import DisparseError, LoadError
from disparse_structured.files import write_text
from disparse_structured.report.page.comparison import Comparison
from disparse_structured.report.page.html import LARGEST, diff_page, page
from disparse_structured.report.page.markdown import diff_markdown, markdown
from disparse_structured.report.page.run import Run
from disparse_structured.report.page.verdict import verdict
from disparse_structured.report.schemas import document_text, schema
from tests.support.pages import PLAN, REPORT, Element, Page, folder


def shown(path: Path) -> Element:
    return Page(page(Run.of_folder(path))).root


def test_the_page_shows_the_tasks_the_votes_and_the_checks(tmp_path: Path) -> None:
    root = shown(folder(tmp_path / "small"))
    assert [each.text for each in root.all("h1")] == ["Tiny, pruned"]
    tasks = root.id("tasks-table").table()
    assert tasks[0] == ["task", "as cut", "refit", "units reached", "asked to remove", "removed"]
    assert tasks[1] == ["near", "4 %", "1 %", "8", "50 %", "50 %"]
    votes = root.id("groups-table").table()
    assert votes[0][-2:] == ["near votes", "far votes"]
    assert votes[1] == ["1", "trunk.0", "channel", "all", "8", "4", "50 %", "50 %", "50 %"]
    assert votes[2] == ["2", "far.0", "channel", "far", "4", "4", "0 %", "–", "25 %"]
    checks = root.id("checks-table").table()
    assert checks[1][:2] == ["near", "1.0e-16"]
    assert "train mode" in root.id("checks").text
    assert root.id("command").text == "disparse prune --model 'my net.py:build'"
    assert "4 ms" in root.id("time").text


def test_the_verdict_is_one_line_for_a_pull_request(tmp_path: Path) -> None:
    run = Run.of_folder(folder(tmp_path))
    assert verdict(run) == (
        "Tiny: MACs 100 → 50 (50 %) · 4 → 2 ms (quartiles 1.5 to 2.5; onnxruntime 1.22, a processor, "
        "1 thread) · outputs deviate by at most 2 % (far, after the refit) · removal verified"
    )
    assert Page(page(run)).root.id("verdict").text == verdict(run)


def test_columns_that_moved_further_than_the_whole_are_said(tmp_path: Path) -> None:
    columns = {"near": {"place": "columns 4-83 of dimension 1", "deviation": 0.3}}
    run = Run.of_folder(folder(tmp_path, {"deviation": {**REPORT["deviation"], "columns": columns}}))
    assert "at most 30 % (near, columns 4-83 of dimension 1, after the refit)" in verdict(run)
    assert (
        "near, columns 4-83 of dimension 1: 30 % relative to those columns alone."
        in Page(page(run)).root.id("tasks").text
    )


def test_a_time_that_is_not_shorter_is_not_called_shorter(tmp_path: Path) -> None:
    latency = copy.deepcopy(REPORT["latency"])
    latency["models"][1]["upper_quartile_ms"] = 3.6
    run = Run.of_folder(folder(tmp_path, {"latency": latency}))
    assert "4 → 2 ms, not measurably faster (quartiles 1.5 to 3.6" in verdict(run)


def test_the_tasks_agreement_is_beside_that_of_chance(tmp_path: Path) -> None:
    table = shown(folder(tmp_path)).id("overlap").table()
    # Both reach trunk.0 only: two of six units; by chance 4 * 4 / 8 of 8 - 2.
    assert table[1] == ["near", "–", "33 %33 % by chance"]


def test_what_was_left_alone_comes_with_what_would_free_it(tmp_path: Path) -> None:
    rows = {row[0]: row for row in shown(folder(tmp_path)).id("left-table").table()}
    assert rows["spare"][2:] == ["30 %", "Drop it: drop_unused=True (--drop-unused)."]
    assert rows["near.1"][1:] == [
        "forward cannot follow",
        "–",
        'Prune the exported graph: form="graph" (--form graph).',
    ]
    assert "--form graph" in rows["far"][3]
    assert rows["the model itself"][3] == "Nothing: its width is part of the interface."
    assert rows["far.*"][1] == "the budget protects it"


def test_the_page_loads_nothing_and_holds_its_files(tmp_path: Path) -> None:
    text = page(Run.of_folder(folder(tmp_path)))
    root = Page(text).root
    links = [each.attributes.get(name) for each in root.everything() for name in ("href", "src", "srcset")]
    assert all(link.startswith(("#", "data:")) for link in links if link is not None)
    assert not re.findall(r"https?:|@import|url\(|//[a-z]", text)
    policy = [each for each in root.all("meta") if each.attributes.get("http-equiv")]
    assert "default-src 'none'" in str(policy[0].attributes["content"])
    downloads = {
        each.attributes["download"]: each.attributes["href"]
        for each in root.all("a")
        if "download" in each.attributes
    }
    plan = base64.b64decode(str(downloads["plan.json"]).partition("base64,")[2])
    assert plan == (tmp_path / "plan.json").read_bytes()
    assert (
        json.loads(base64.b64decode(str(downloads["report.json"]).partition("base64,")[2]))["model"] == "Tiny"
    )
    assert len(text.encode()) < 60_000


def test_every_table_has_a_caption_and_every_section_a_name(tmp_path: Path) -> None:
    root = shown(folder(tmp_path))
    for table in root.all("table"):
        assert table.all("caption")[0].text
        assert all(each.attributes.get("scope") in ("col", "row") for each in table.all("th"))
    ids = [each.attributes["id"] for each in root.everything() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for section in root.all("section"):
        title = f"{section.attributes['id']}-title"
        assert title in section.attributes.values()
        assert root.id(title).tag == "h2"
    for link in root.all("nav")[0].all("a"):
        assert root.id(str(link.attributes["href"]).removeprefix("#")).tag == "section"
    assert all(each.attributes.get("aria-label") for each in root.all("svg"))
    assert root.all("html")[0].attributes["lang"] == "en"


EVIL = "<script>alert('x')</script>\"&{{ 7 * 7 }}"


def test_every_name_is_escaped(tmp_path: Path) -> None:
    plan = json.loads(json.dumps(PLAN).replace("near", "NEAR").replace("trunk.0", "TRUNK"))
    report = json.loads(json.dumps(REPORT).replace("near", "NEAR"))
    swapped = [
        json.loads(json.dumps(document).replace("NEAR", "@").replace("TRUNK", "@").replace('"@', '"@'))
        for document in (plan, report)
    ]

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {poisoned(name): poisoned(each) for name, each in value.items()}
        if isinstance(value, list):
            return [poisoned(each) for each in value]
        return value.replace("@", EVIL) if isinstance(value, str) else value

    plan, report = map(poisoned, swapped)
    report |= {"model": EVIL, "method": EVIL, "versions": {EVIL: EVIL}, "command": ["prune", EVIL]}
    report["pinned"] = [{"reason": EVIL, "operator": EVIL, "module": EVIL, "share": 0.1}]
    report["latency"]["models"][1]["name"] = EVIL
    run = Run.of_folder(folder(tmp_path / "small", report, plan))
    other = Run.of_folder(folder(tmp_path / "other"))
    for text in (page(run), diff_page(Comparison(run, other))):
        root = Page(text).root
        assert len(root.all("script")) == 1
        assert EVIL in root.text
        assert "49" not in re.sub(r"[^{}]*", "", root.text)
    assert "<script>" not in markdown(run)
    assert "<script>" not in diff_markdown(Comparison(run, other))


def test_what_a_report_does_not_have_is_absent(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"model": "Old", "plan": "12", "tasks": [{"name": "out"}]}')
    root = shown(tmp_path)
    assert [each.attributes["id"] for each in root.all("section")] == ["tasks", "checks", "repeat"]
    assert root.id("tasks-table").table()[1] == ["out", "–", "–", "–"]
    assert "does not say whether" in root.id("checks").text
    assert verdict(Run.of_folder(tmp_path)) == "Old: "


def test_a_removal_that_was_not_verified_is_said_to_be_so(tmp_path: Path) -> None:
    path = folder(tmp_path, {"verification": {"verified": False}})
    assert "NOT VERIFIED" in verdict(Run.of_folder(path))
    assert "was not verified" in shown(path).id("checks").text


def test_numbers_that_are_not_finite_are_shown_as_such(tmp_path: Path) -> None:
    deviation = {**REPORT["deviation"], "cut": {"near": float("nan"), "far": float("inf")}}
    rows = shown(folder(tmp_path, {"deviation": deviation})).id("tasks-table").table()
    assert [row[1] for row in rows[1:]] == ["not a number", "infinite"]


def test_a_number_that_is_not_finite_is_null_in_the_file_and_named_on_the_page(tmp_path: Path) -> None:
    text = document_text({"near": float("nan"), "far": [float("inf")], "other": 1.5})
    assert json.loads(text) == {"near": None, "far": [None], "other": 1.5}

    deviation = {**REPORT["deviation"], "final": {"near": None, "far": 0.1}}
    path = folder(tmp_path, {"deviation": deviation})
    assert "the deviation of near is not a finite number" in verdict(Run.of_folder(path))
    rows = shown(path).id("tasks-table").table()
    assert "–" in rows[1]


def test_a_large_network_fits(tmp_path: Path) -> None:
    tasks = [f"task_{i}" for i in range(6)]
    votes = {task: ",".join(map(str, range(i, 64, 9))) for i, task in enumerate(tasks)}
    groups = [
        {
            "name": f"backbone.stages.{i}.blocks.{i % 7}.mlp.fc1",
            "kind": "channel",
            "units": 64,
            "reach": tasks,
            "removed": f"0-{i % 60}",
            "votes": votes,
        }
        for i in range(1800)
    ]
    pins = [{"reason": f"reason {i}", "operator": "view", "module": f"module.{i}"} for i in range(1800)]
    report = {"tasks": [{"name": task} for task in tasks], "deviation": None, "pinned": pins}
    text = page(Run.of_folder(folder(tmp_path, report, {"tasks": tasks, "groups": groups})))
    assert len(text.encode()) < LARGEST
    root = Page(text).root
    assert "more groups, which lost the least," in root.text
    assert "more are in report.json" in root.id("left").text


def test_a_page_that_cannot_be_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"would be larger than 1 MB: its names or texts are huge"):
        page(Run.of_folder(folder(tmp_path, {"model": "x" * LARGEST})))


def test_a_plan_that_is_large_is_compressed(tmp_path: Path) -> None:
    groups = [{**PLAN["groups"][0], "name": f"trunk.{i}"} for i in range(400)]
    root = shown(folder(tmp_path, plan={"groups": groups}))
    (link,) = [each for each in root.all("a") if each.attributes.get("download") == "plan.json.gz"]
    packed = base64.b64decode(str(link.attributes["href"]).partition("base64,")[2])
    assert gzip.decompress(packed) == (tmp_path / "plan.json").read_bytes()


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a list for an object": ({"costs": []}, r"costs must be an object, found a list"),
    "a text for a number": (
        {"costs": {"macs": {"unit": "MACs", "dense": "x", "predicted": 1, "counted": None}}},
        r"costs\.macs\.dense must be a number, found 'x'",
    ),
    "true for a number": ({"ratio": True}, r"ratio must be a number or null, found True"),
    "an entry that is missing": ({"refused": [{"group": "a"}]}, r"refused\[0\]\.reason is missing"),
    "a huge number": ({"units": 10**400}, r"units must be a whole number, found a number that is too large"),
    "a negative count": ({"groups": -1}, r"groups must be at least 0, found -1"),
    "a width of nothing": (
        {
            "speed": {
                **dict.fromkeys(("asked", "predicted", "measured", "lower", "upper", "macs"), 0.5),
                **dict.fromkeys(("dense_ms", "pruned_ms", "exports", "rounds"), 1),
                "runtime": {},
                "stairs": [{"group": "trunk.0", "won": 1.0, "widths": [0], "ms": [1.0]}],
            }
        },
        r"speed\.stairs\[0\]\.widths\[0\] must be at least 1, found 0",
    ),
    "null for a list": ({"pinned": None}, r"pinned must be a list, found None"),
    "a name that is a number": ({"tasks": [{"name": 3}]}, r"tasks\[0\]\.name must be a text, found 3"),
    "a later version": ({"schema": 2}, r"schema version 2, but this release reads up to version 1"),
    "another plan": ({"plan": "0" * 64}, r"come from different runs"),
}


@pytest.mark.parametrize(("entries", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_damaged_report_gets_an_error_that_names_the_entry(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        Run.of_folder(folder(tmp_path, entries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"\\ud800"', "is not JSON"),
        ("[]", "the document must be an object, found a list"),
        ('{"model": ' + "9" * 10_000 + "}", "is not JSON"),
    ],
    ids=["empty", "deep", "a lone surrogate", "a list", "digits"],
)
def test_what_is_not_a_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(LoadError, match=message):
        Run.of_folder(tmp_path)


@pytest.mark.parametrize("removed", ["0-999999999999", "3,1", "x", "0-3,2", "9" * 40])
def test_units_that_a_group_does_not_have_are_refused(tmp_path: Path, removed: str) -> None:
    groups = [{**PLAN["groups"][0], "removed": removed}]
    with pytest.raises(LoadError, match=r"'trunk\.0': .* is not an ascending list of its 8 units"):
        Run.of_folder(folder(tmp_path, plan={"groups": groups}))


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(DisparseError, match=r"place' cannot be written: .*choose another path"):
        write_text(tmp_path / "place", "text")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["place"]


def test_the_markdown_is_the_verdict_and_a_row_for_each_task(tmp_path: Path) -> None:
    lines = markdown(Run.of_folder(folder(tmp_path))).splitlines()
    assert lines[0].startswith("**Tiny: MACs 100 → 50 (50 %) · ")
    assert lines[2:5] == [
        "| task | as cut | refit | units reached | asked to remove | removed |",
        "| :-- | --: | --: | --: | --: | --: |",
        "| near | 4 % | 1 % | 8 | 50 % | 50 % |",
    ]


def test_two_runs_beside_each_other(tmp_path: Path) -> None:
    groups = [{**PLAN["groups"][0], "removed": "0-1"}, PLAN["groups"][1]]
    costs = {"macs": {**REPORT["costs"]["macs"], "counted": 75}}
    one = Run.of_folder(folder(tmp_path / "one"))
    other = Run.of_folder(
        folder(tmp_path / "two", {"costs": costs, "method": "Compensated"}, {"groups": groups})
    )
    found = Comparison(one, other)
    assert found.verdict == "one and two have different plans: of the units that either lost, both lost 50 %"
    assert ("MACs", "50", "75", "+50 %") in found.figures()
    assert ("milliseconds", "2", "2", "same") in found.figures()
    assert ("method", "DiSparse", "Compensated") in found.settings()
    root = Page(diff_page(found)).root
    assert root.id("groups-table").table()[1] == ["trunk.0", "8", "4", "6", "50 %"]
    assert "| MACs | 50 | 75 | +50 % |" in diff_markdown(found)
    assert Comparison(one, one).verdict == "A and B have the same plan"


def test_runs_of_different_networks_are_said_to_be_so(tmp_path: Path) -> None:
    one, other = (
        Run.of_folder(folder(tmp_path / name, plan={"fingerprint": name * 8})) for name in ("one", "two")
    )
    assert Comparison(one, other).verdict == "one and two were made from different dense networks"


# The schema.


def test_the_schema_has_every_entry_of_a_report() -> None:
    from disparse_structured.report.pruning import PruningReport

    fields = {field.name for field in dataclasses.fields(PruningReport)}
    added = {"schema", "command", "computes", "images", "export", "latency", "int8", "training", "demo"}
    assert set(schema("report")["properties"]) == fields | added | {"weights_changed", "weights_sha256"}


def test_the_schema_has_the_fields_of_the_facts() -> None:
    from disparse_structured.data.deviation import Columns
    from disparse_structured.report import deviation, facts, pruning, quantization, recovery, refit, speed
    from disparse_structured.structure import Pin, UnusedModule

    parts = schema("report")["$defs"]
    int8, latency = (parts[name]["properties"] for name in ("int8", "latency"))
    kinds = [
        (parts["cost"], pruning.CostFacts),
        (parts["task"], pruning.TaskFacts),
        (parts["deviation"], deviation.DeviationFacts),
        (parts["columns"], Columns),
        (parts["refit"], refit.RefitFacts),
        (parts["refit"]["properties"]["layers"]["items"], refit.LayerFacts),
        (parts["recovery"], recovery.RecoveryFacts),
        (parts["verification"], pruning.VerificationFacts),
        (parts["pin"], Pin),
        (parts["unused"], UnusedModule),
        (parts["refused"], pruning.RefusedGroup),
        (parts["speed"], speed.SpeedFacts),
        (parts["speed"]["properties"]["stairs"]["items"], speed.StairFacts),
        (parts["latency"], facts.LatencyFacts),
        (latency["models"]["items"], facts.LatencyFact),
        (parts["tensor"], facts.TensorFact),
        (parts["export"], facts.ExportFacts),
        (parts["int8"], quantization.QuantizationFacts),
        (int8["tasks"]["additionalProperties"], quantization.TaskDeviation),
        (int8["layers"]["items"], quantization.LayerFact),
    ]
    for part, kind in kinds:
        assert set(part["properties"]) == {field.name for field in dataclasses.fields(kind)}, kind


def test_the_schemas_use_only_what_is_checked() -> None:
    checked = {"$ref", "anyOf", "type", "minimum", "required", "properties", "additionalProperties", "items"}
    said = {"$schema", "$defs", "title", "description"}

    def parts(part: dict[str, Any]) -> list[dict[str, Any]]:
        below = [
            *part.get("properties", {}).values(),
            *part.get("$defs", {}).values(),
            *part.get("anyOf", ()),
        ]
        below += [part[name] for name in ("items", "additionalProperties") if name in part]
        return [part, *(each for child in below for each in parts(child))]

    for name in ("report", "plan"):
        for part in parts(schema(name)):
            assert set(part) <= checked | said
