"""The page: what was to be achieved, and every model; and the counts as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.harness.machine import in_words
from benchmarks.harness.views import NONE, markdown, percent, times
from benchmarks.timm_sweep.cells import KINDS, Kind, Row
from benchmarks.timm_sweep.models import Selection

ENDS = ("the network's output", "the network's input")
"""Reasons that every network has, and that no rule can lift."""

LEAST = 0.01
"""Smaller shares of the parameters are not listed."""

_HEAD = """# Models of timm

`python -m benchmarks.timm_sweep` writes this page from [one line of JSON per
model](../../benchmarks/results/timm_sweep/rows.jsonl). Every model is built with random weights, in one or
two
ways: as *multitask* (timm's features with two dense heads and a linear one) and as the *classifier* that timm
makes of it. A plan of random scores takes every layer to about half of its width. *Sound as module*: the
pruned module runs, equals the masked twin (relative difference ≤ 1e-9 in float64, or ≤ 1e-4 where the model
does not run in float64, which is then noted), agrees with ONNX Runtime in float32 (≤ 1e-4), and one step of
SGD lowers its loss. *Sound as graph*: the pruned exported graph, with a plan of its own in which sizes in
`forward` do not pin anything, equals its masked twin. *Prunable* is what is removed if every group keeps one
unit, or the few that count constraints ask for. Seconds of `structure` include an export of its own, which
the goals subtract. Those of `surgery` include the verification. *Stock* is Torch-Pruning's `MagnitudePruner`
at 50 % with its own tracing and its own recipe for timm (predictors are left alone, heads are counted again,
and timm's newer `attn_dim` too): how far it came, and the parameters it removed. It does not verify anything:
a network that runs may still be wrong. Where it was stopped at a limit of time or memory, it is not counted.
Images have timm's size, or the side in pixels that follows the kind.
"""


_Place = tuple[str, Kind]


@dataclass(frozen=True)
class Summary:
    """Counts of one kind of network in one selection; medians are None where nothing was measured."""

    run: int
    models: int
    sound: int
    sound_at_first: int
    exported: int
    halved: int
    graphs_run: int
    graphs: int
    graphs_halved: int
    prunable: float | None
    structure_share: float | None
    stock: int
    stock_cut_off: int
    stock_graph: int
    stock_prune: int
    stock_run: int

    @classmethod
    def of(cls, models: int, rows: Sequence[Row]) -> Summary:
        """The counts over ``rows``, which are of ``models`` models."""
        shares = [share for row in rows if (share := row.structure_share) is not None]
        tried = [row for row in rows if "stock graph" in {**row.seconds, **row.failures}]
        prunable = [row.prunable_parameters for row in rows if "prunable" in row.seconds]

        stock = [row for row in tried if not row.stock_cut_off]

        def ended(stage: str, among: Sequence[Row] = rows) -> int:
            return sum(stage in row.seconds for row in among)

        return cls(
            run=len(rows),
            models=models,
            sound=sum(row.sound for row in rows),
            sound_at_first=sum(row.first_try == "sound" for row in rows),
            exported=ended("warm-up"),
            halved=sum(row.sound and row.removed >= 0.5 for row in rows),
            graphs_run=sum("graph" in {**row.seconds, **row.failures} for row in rows),
            graphs=sum(row.sound_as_graph for row in rows),
            graphs_halved=sum(row.sound_as_graph and 2 * row.graph_left <= row.parameters for row in rows),
            prunable=statistics.median(prunable) if prunable else None,
            structure_share=statistics.median(shares) if shares else None,
            stock=len(stock),
            stock_cut_off=len(tried) - len(stock),
            stock_graph=ended("stock graph", stock),
            stock_prune=ended("stock prune", stock),
            stock_run=ended("stock run", stock),
        )


def document(selections: Sequence[Selection], rows: Iterable[Row]) -> str:
    """The whole page: a section for every selection, and one for rows that are in none."""
    by_cell = _placed(rows)
    parts = [_HEAD.rstrip()]
    machines = {in_words(row.machine) for row in by_cell.values() if row.machine}
    parts += [f"Measured on {text}." for text in sorted(machines)]
    for selection in _with_rest(selections, by_cell):
        found = [row for name in selection.models for kind in KINDS if (row := by_cell.get((name, kind)))]
        if found:
            parts += [f"## {selection.title}", goals(selection, by_cell), table(found)]
            parts += _headed("### Not sound", failures(found))
            parts += _headed("### What stayed, and why", stayed(found))
    return "\n\n".join(parts) + "\n"


def _placed(rows: Iterable[Row]) -> dict[_Place, Row]:
    return {(row.cell.model, row.cell.kind): row for row in rows}


def goals(selection: Selection, by_cell: Mapping[_Place, Row]) -> str:
    """What was to be achieved, with a column for each kind of network."""
    found = {kind: summary for kind in KINDS if (summary := summarized(selection, kind, by_cell)).run}
    lines: list[tuple[str, Callable[[Summary], str], str]] = [
        ("sound as module", lambda s: f"{s.sound} of {s.run}", "all; of models drawn 145 of 150"),
        ("sound at the first try", lambda s: f"{s.sound_at_first} of {s.run}", ""),
        ("sound, and ≥ 50 % of parameters removed", lambda s: f"{s.halved} of {s.run}", "86 of 88"),
        ("sound as graph", lambda s: f"{s.graphs} of {s.graphs_run}", "all"),
        (
            "sound as graph, and ≥ 50 % of parameters removed",
            lambda s: f"{s.graphs_halved} of {s.graphs_run}",
            "",
        ),
        ("exported by `torch.export`", lambda s: f"{s.exported} of {s.run}", ""),
        ("parameters that could go, median", lambda s: percent(s.prunable), ""),
        ("time for the structure / `torch.export`, median", lambda s: times(s.structure_share), "≤ 0.5 ×"),
        ("stock: builds its graph and groups", lambda s: f"{s.stock_graph} of {s.stock}", ""),
        ("stock: prunes", lambda s: f"{s.stock_prune} of {s.stock}", ""),
        ("stock: still runs", lambda s: f"{s.stock_run} of {s.stock}", ""),
        ("stock: cut off by a limit, not counted above", lambda s: f"{s.stock_cut_off}", ""),
        ("not run yet", lambda s: f"{s.models - s.run}", "0"),
    ]
    body = [[what, *(cell(summary) for summary in found.values()), asked] for what, cell, asked in lines]
    return markdown(["", *found, "asked"], body)


def summarized(selection: Selection, kind: Kind, by_cell: Mapping[_Place, Row]) -> Summary:
    """The counts over the rows that there are."""
    rows = [row for name in selection.models if (row := by_cell.get((name, kind)))]
    return Summary.of(len(selection.models), rows)


def table(rows: Sequence[Row]) -> str:
    """One line for each row."""
    head = [
        "model", "", "parameters", "groups", "prunable parameters", "prunable MACs", "removed parameters",
        "removed MACs", "twin", "ONNX", "step",
        "removed from the graph", "its twin", "export s", "structure s", "plan s", "surgery s", "stock",
    ]  # fmt: skip
    return markdown(head, map(_line, rows))


def failures(rows: Sequence[Row]) -> str:
    """The rows that are not sound, and the stage that failed."""
    modules = [f"- {_name(row)}: {row.verdict}" for row in rows if not row.sound]
    graphs = [f"- {_name(row)}, as graph: {row.failures['graph']}" for row in rows if "graph" in row.failures]
    return "\n".join(modules + graphs)


def stayed(rows: Sequence[Row]) -> str:
    """Reasons of pinned parameters, with the share that each holds at most, and groups that were refused."""
    lines = []
    for row in rows:
        pinned = [
            f"{reason} {share:.0%}" for reason, share in row.pinned if reason not in ENDS and share >= LEAST
        ]
        told = [f"pinned: {', '.join(pinned)}"] if pinned else []
        by_reason: dict[str, list[str]] = {}
        for group, reason in row.refused.items():
            by_reason.setdefault(reason, []).append(group)
        told += [f"{len(groups)} refused, {groups[0]} first: {why}" for why, groups in by_reason.items()]
        lines += [f"- {_name(row)}: {'; '.join(told)}"] if told else []
    return "\n".join(lines)


def as_json(selections: Sequence[Selection], rows: Iterable[Row]) -> dict[str, Any]:
    """The counts of every selection, and the machines."""
    by_cell = _placed(rows)
    return {
        "selections": [
            {
                "title": selection.title,
                "models": list(selection.models),
                **{kind: asdict(summarized(selection, kind, by_cell)) for kind in KINDS},
            }
            for selection in _with_rest(selections, by_cell)
        ],
        "machines": sorted({in_words(row.machine) for row in by_cell.values() if row.machine}),
    }


def _line(row: Row) -> list[str]:
    ended, seconds = row.seconds.__contains__, row.seconds
    twin = NONE if row.twin is None else f"{row.twin:.0e}"
    return [
        row.cell.model if row.sound else f"**{row.cell.model}**",
        row.cell.kind if row.cell.image_size is None else f"{row.cell.kind}, {row.cell.image_size} px",
        f"{row.parameters / 1e6:.2f} M" if ended("build") else NONE,
        f"{row.groups}" if ended("structure") else NONE,
        percent(row.prunable_parameters if ended("prunable") else None),
        percent(row.prunable_macs if ended("prunable") else None),
        percent(row.removed if ended("surgery") else None),
        percent(1 - row.macs_left / row.macs if ended("surgery") and row.macs else None),
        twin if row.dtype in ("", "float64") else f"{twin} ({row.dtype})",
        NONE if row.parity is None else f"{row.parity:.0e}",
        f"−{row.learned:.1%}" if ended("train") else NONE,
        percent(1 - row.graph_left / row.parameters if row.sound_as_graph else None),
        NONE if row.graph_twin is None else f"{row.graph_twin:.0e}",
        *(f"{seconds[stage]:.1f}" if ended(stage) else NONE for stage in _TIMED),
        _stock(row),
    ]


_TIMED = ("export", "structure", "plan", "surgery")
_BROKEN = {"stock graph": "no graph", "stock prune": "does not prune", "stock run": "does not run"}


def _stock(row: Row) -> str:
    if row.stock_cut_off:
        return "no end"
    for stage, word in _BROKEN.items():
        if stage not in row.seconds:
            return word if stage in row.failures else NONE
    return f"runs, {percent(1 - row.stock_left / row.parameters)}"


def _with_rest(selections: Sequence[Selection], by_cell: Mapping[_Place, Row]) -> list[Selection]:
    listed = {name for selection in selections for name in selection.models}
    rest = dict.fromkeys(model for model, _ in by_cell if model not in listed)
    return [*selections, Selection("Others", tuple(rest))] if rest else list(selections)


def _name(row: Row) -> str:
    return f"{row.cell.model} ({row.cell.kind})"


def _headed(heading: str, text: str) -> list[str]:
    return [heading, text] if text else []
