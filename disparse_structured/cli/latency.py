"""``disparse latency``: how long a model's operations take, and at which widths they are fast."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from disparse_structured.cli import names, views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.inspect import structure_alone
from disparse_structured.files import write_text
from disparse_structured.latency import Latency, LatencyModel, Table, cache_folder
from disparse_structured.latency.picture import picture


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Measures what is not known yet, and shows it; or forgets everything."""
    if arguments.clear:
        return _cleared()
    model, structure = structure_alone(arguments, screen)
    setting = {"threads": arguments.threads, "batch": arguments.batch, "size": arguments.size}
    runtime = names.runtime(arguments.runtime, **setting)
    table = Table(runtime.facts)
    known = len(table)
    measured = Latency(model, runtime, table=table, progress=screen.progress).on(structure)
    document = {
        "dense_ms": measured.dense,
        "operations": [_facts(each) for each in measured.operations()],
        "runtime": dict(runtime.facts),
        "table": str(table.path),
        "times": len(table),
        "measured": len(table) - known,
    }
    if arguments.picture is not None:
        write_text(arguments.picture, picture(measured))
        document["picture"] = str(arguments.picture)
    return Outcome(document, _views(document, measured))


def _cleared() -> Outcome:
    files = sorted(cache_folder().glob("*.jsonl"))
    for file in files:
        file.unlink()
    text = f"forgot {len(files)} table{'' if len(files) == 1 else 's'} in {cache_folder()}"
    return Outcome({"cleared": [str(file) for file in files]}, [Text(text)])


def _facts(operation: Any) -> dict[str, Any]:
    return {
        name: getattr(operation, name) for name in ("label", "read", "made", "count", "ms", "step", "aligned")
    }


def _views(document: dict[str, Any], measured: LatencyModel) -> list[RenderableType]:
    table = views.table_of("operation", "read", "made", "times", "ms", "share", "fast on multiples of")
    for facts in measured.operations():
        rungs = zip(("read", "made"), map(max, zip(facts.step, facts.aligned, strict=True)), strict=True)
        fast = [f"{rung} {name}" for name, rung in rungs if name in facts.curves]
        share = facts.ms / document["dense_ms"]
        numbers = (str(facts.read), str(facts.made), str(facts.count), f"{facts.ms:.3f}", f"{share:.1%}")
        table.add_row(Text(facts.label), *numbers, ", ".join(fast))
    where = ", ".join(f"{name} {value}" for name, value in document["runtime"].items())
    lines = [
        f"dense: {document['dense_ms']:.3g} ms ({where})",
        f"{document['measured']} of {document['times']} times were measured now. They are kept in "
        f"{document['table']}",
    ]
    if "picture" in document:
        lines.append(f"drawn: {document['picture']}")
    return [table, *map(Text, lines)]
