"""The page: tables from finished rows, and the same figures as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.harness.views import NONE, markdown, spread
from benchmarks.no_training.bench import INPUTS
from benchmarks.no_training.cells import Row
from benchmarks.no_training.goals import EPOCHS, OURS, Goal, goals
from benchmarks.no_training.methods import ABLATED, FEW, FRACTIONS, METHODS, Family
from benchmarks.no_training.results import Figure, Results, delta_t, mean_deviation, worst

COUNTS = (8, 16, 32, 64, 128)
"""The numbers of images that are tried."""

_HEAD = """# Pruning without training

`python -m benchmarks.no_training` writes this page, its plots and a
[summary in JSON](../../benchmarks/results/no_training/summary.json).
Six trained multi-task networks (NYU-v2: segmentation, depth, normals; card photographs: four
classifications, reported on another camera's) are pruned to a share of their MACs from {inputs} images,
with no training afterwards, and no labels but where the table says so. *Deviation* is
`‖pruned − dense‖ / ‖dense‖` of each task's output, mean over the tasks, on images that no method saw;
ΔT is the mean relative change of the tasks' figures in percent, higher is better. Figures are means (± sample
standard deviation) over {seeds}; without ±, they are of one seed. MACs are counted on the pruned networks
and meet the share within one percent from below; widths are not rounded (`round_to=1`).
`+bn`: the statistics of batch norms re-estimated from the images.
"""

_FAMILIES: tuple[tuple[str, tuple[Family, ...], str | None], ...] = (
    ("random units, best with or without BN", ("chance",), None),
    ("best stock variant without BN re-estimation", ("stock",), "plain"),
    ("best stock variant", ("stock",), None),
    ("best folding", ("folding",), None),
    ("best GRAIL", ("grail",), None),
    ("GRAIL on the units that ours removes", ("hybrid",), None),
    ("**ours**", ("ours",), None),
)


def document(results: Results, plots: Iterable[str], call: Mapping[str, float]) -> str:
    """The whole page.

    Args:
        results: the finished rows.
        plots: names of files beside the page.
        call: seconds of each stage of one large call.
    """
    count = len({row.cell.seed for row in results.rows()})
    parts = [
        _HEAD.format(inputs=INPUTS, seeds=f"{count} seeds" if count > 1 else "one seed"),
        "## Goals",
        goal_table(goals(results)),
        *(f"![{name}]({name})" for name in plots),
        "## In short",
        "At each share the best variant of each family, chosen by the very figure that the column shows: the "
        "families with many variants have the advantage.",
        "### Mean deviation",
        *_short(results, mean_deviation, most=False, digits=3),
        "### ΔT in percent",
        *_short(results, delta_t, most=True, digits=1),
    ]
    optional = (
        ("## What each part does", ablation(results)),
        ("## How many images", inputs_table(results)),
        (f"## After {EPOCHS} epochs of training at 30 % of the MACs", finetune_table(results)),
        ("## One call on a large network", call_table(call)),
        ("## Seconds a call", seconds(results)),
        ("## Failed", failures(results)),
    )
    for heading, table in optional:
        parts += [heading, table] if table else []
    parts.append("## All methods")
    for network in results.networks:
        parts += [f"### {network}", full(results, network)]
    parts += ["## Where the methods are from", sources()]
    return "\n\n".join(parts) + "\n"


def goal_table(lines: Iterable[Goal]) -> str:
    """What was to be achieved, and what was."""
    body = [
        [line.what, line.network, line.found, line.against, line.goal, "yes" if line.met else "**no**"]
        for line in lines
    ]
    return markdown(["goal", "network", "ours", "best stock", "asked", "met"], body)


def ablation(results: Results) -> str:
    """Ours with one part switched off or exchanged: mean deviation, ΔT and worst task over the networks."""
    results = results.seeds_of(lambda row: METHODS[row.cell.method].family == "ablation")
    networks = [name for name in results.networks if results.at(name, OURS, ABLATED)]
    if not networks:
        return ""
    methods = [OURS, *results.methods("ablation")]
    body = [
        [
            name,
            *(_cell(results, mean_deviation, network, name, ABLATED, 3) for network in networks),
            *(_over(results, figure, networks, name, ABLATED, digits) for figure, digits in _MEANS),
        ]
        for name in methods
    ]
    head = ["", *(f"{name} deviation" for name in networks), "mean", "mean ΔT %", "mean worst task %"]
    return f"At {ABLATED:.0%} of the MACs.\n\n{markdown(head, body)}"


_MEANS: tuple[tuple[Figure, int], ...] = ((mean_deviation, 3), (delta_t, 1), (worst, 1))


def inputs_table(results: Results) -> str:
    """Ours by the number of images."""
    results = results.seeds_of(lambda row: row.cell.inputs != INPUTS)
    body = []
    for network in results.networks:
        for macs in FEW:
            found = [results.at(network, OURS, macs, count) for count in COUNTS]
            if sum(map(bool, found)) > 1:
                cells = [_two(rows) if rows else NONE for rows in found]
                body.append([f"{network}, {macs:.0%}", *cells])
    head = ["deviation / ΔT %", *(f"{count} images" for count in COUNTS)]
    return markdown(head, body) if body else ""


def _two(rows: Sequence[Row]) -> str:
    """Deviation and ΔT."""
    return f"{statistics.fmean(map(mean_deviation, rows)):.3f} / {statistics.fmean(map(delta_t, rows)):+.1f}"


def finetune_table(results: Results) -> str:
    """ΔT of ours and of the best stock variant before and after training."""
    body = []
    for network in results.networks:
        for name in (OURS, *results.methods("stock")):
            after = results.at(network, name, 0.3, INPUTS, EPOCHS)
            if after:
                values = [row.delta_t for row in after], [row.worst for row in after]
                body.append(
                    [
                        network,
                        name,
                        _cell(results, delta_t, network, name, 0.3, 1),
                        *(spread(each, 1) for each in values),
                    ]
                )
    head = ["network", "method", "ΔT % without training", "ΔT %", "worst task %"]
    return markdown(head, body) if body else ""


def call_table(call: Mapping[str, float]) -> str:
    """Seconds a stage."""
    return (
        markdown(["stage", "seconds"], [[stage, f"{value:.0f}"] for stage, value in call.items()])
        if call
        else ""
    )


def seconds(results: Results) -> str:
    """Mean seconds from the dense network to the pruned one, structure known, on one thread."""
    names = [name for name, method in METHODS.items() if method.family != "ablation"]
    body = []
    for network in results.networks:
        means = {
            name: statistics.fmean(row.seconds for row in rows)
            for name in names
            if (rows := [row for macs in FRACTIONS for row in results.at(network, name, macs)])
        }
        shown = (OURS, "grail-magnitude", "folding+bn", "magnitude-uniform+bn", "hessian-global+bn")
        body.append([network, *(f"{means[name]:.1f}" if name in means else NONE for name in shown)])
    return markdown(["network", *shown], body) if body else ""


def failures(results: Results) -> str:
    """The cells without a result, by error."""
    names: dict[str, list[str]] = {}
    for row in results.failed:
        names.setdefault(" ".join(str(row.error).split()), []).append(row.cell.label)
    return "\n".join(f"- {error}: {', '.join(cells)}" for error, cells in names.items())


def sources() -> str:
    """The methods, by source."""
    names: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        if method.family != "ablation":
            names.setdefault(method.source, []).append(name)
    return "\n".join(f"- {', '.join(each)}: {source}." for source, each in names.items())


def full(results: Results, network: str) -> str:
    """Every method on one network: deviation and ΔT at every share."""
    body = []
    for name, method in METHODS.items():
        rows = [results.at(network, name, macs) for macs in FRACTIONS]
        if method.family == "ablation" or not any(rows):
            continue
        labels = "labels" if method.labels else ""
        cells = [
            spread([figure(row) for row in each], digits) if each else NONE
            for figure, digits in ((mean_deviation, 3), (delta_t, 1))
            for each in rows
        ]
        body.append([name, labels, *cells])
    head = ["method", "", *(f"deviation {m:.0%}" for m in FRACTIONS), *(f"ΔT % {m:.0%}" for m in FRACTIONS)]
    return markdown(head, body)


def as_json(results: Results, call: Mapping[str, float]) -> dict[str, Any]:
    """The goals, and means, standard deviations and seeds of everything."""
    return {
        "goals": [vars(line) for line in goals(results)],
        "call_seconds": dict(call),
        "methods": {
            name: {"family": method.family, "labels": method.labels, "source": method.source}
            for name, method in METHODS.items()
        },
        "rows": [_entry(key, rows) for key, rows in results.items()],
    }


def _entry(key: tuple[str, str, float, int, int], rows: Sequence[Row]) -> dict[str, Any]:
    def moments(values: Sequence[float]) -> list[float]:
        return [round(statistics.fmean(values), 5), round(statistics.stdev(values), 5) if values[1:] else 0.0]

    names = ("network", "method", "macs", "inputs", "epochs")
    tasks = rows[0].deviation
    return {
        **dict(zip(names, key, strict=True)),
        "seeds": sorted(row.cell.seed for row in rows),
        "measured_macs": moments([row.macs for row in rows]),
        "parameters": moments([row.parameters for row in rows]),
        "deviation": {task: moments([row.deviation[task] for row in rows]) for task in tasks},
        "delta_t": moments([row.delta_t for row in rows]),
        "deltas": {task: moments([row.deltas[task] for row in rows]) for task in rows[0].deltas},
        "seconds": moments([row.seconds for row in rows]),
    }


def _short(results: Results, figure: Figure, *, most: bool, digits: int) -> Iterable[str]:
    for macs in FRACTIONS:
        networks = [name for name in results.networks if results.at(name, OURS, macs)]
        if not networks:
            continue
        body = []
        for title, families, only in _FAMILIES:
            body.append(
                [
                    title,
                    *(_best(results, figure, name, families, macs, most, digits, only) for name in networks),
                ]
            )
        yield f"**{macs:.0%} of the MACs**\n\n{markdown(['', *networks], body)}"


def _best(
    results: Results,
    figure: Figure,
    network: str,
    families: tuple[Family, ...],
    macs: float,
    most: bool,
    digits: int,
    only: str | None,
) -> str:
    name = results.best(figure, network, families, macs, most, plain=only is not None)
    if name is None:
        return NONE
    text = _cell(results, figure, network, name, macs, digits)
    return text if families == ("ours",) else f"{text} ({name})"


def _cell(results: Results, figure: Figure, network: str, name: str, macs: float, digits: int) -> str:
    values = results.values(figure, network, name, macs)
    return spread(values, digits) if values else NONE


def _over(
    results: Results, figure: Figure, networks: Sequence[str], name: str, macs: float, digits: int
) -> str:
    """The mean over networks; no number where one is missing, because means over others do not compare."""
    found = [results.values(figure, network, name, macs) for network in networks]
    return f"{statistics.fmean(map(statistics.fmean, found)):.{digits}f}" if all(found) else NONE
