"""Shared by the commands that work on a saved folder: its models, and entries added to its report."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from disparse_structured.cli import sources
from disparse_structured.cli.data import CHECK_SAMPLES, first_inputs, load_data
from disparse_structured.errors import DisparseWarning
from disparse_structured.files import ONNX, PAGE, write_text
from disparse_structured.graph.batching import with_batch
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.report.facts import ExportFacts
from disparse_structured.report.page.html import has_pictures, page
from disparse_structured.report.page.run import Run
from disparse_structured.surgery.pruned_graph import tasks_of
from disparse_structured.surgery.saved import Saved
from disparse_structured.surgery.saving import extend_report, load
from disparse_structured.tasks import Task


@dataclass(frozen=True, eq=False)
class Folder:
    """The folder that the arguments name, and the models that can be built for it.

    Args:
        arguments: those of the command.
        own_tasks: use the tasks that the report describes, if it can describe them. `--tasks` may then name
            others, such as those to train on.
    """

    arguments: argparse.Namespace
    own_tasks: bool = False

    @cached_property
    def path(self) -> Path:
        """Its path."""
        return Path(self.arguments.folder)

    @cached_property
    def saved(self) -> Saved:
        """Its plan and report."""
        return Saved.read(self.path)

    @cached_property
    def dense(self) -> nn.Module:
        """What ``--model`` builds."""
        return sources.load_model(self.arguments.model)

    @cached_property
    def given_tasks(self) -> tuple[Task, ...] | None:
        """What ``--tasks`` names."""
        return sources.load_tasks(self.arguments.tasks) if self.arguments.tasks else None

    @cached_property
    def _tasks(self) -> tuple[Task, ...] | None:
        """The tasks to pass to ``load``; None for those of the report."""
        known = self.saved.report.get("selectors")
        described = isinstance(known, Mapping) and None not in known.values()
        return None if self.own_tasks and described else self.given_tasks

    @cached_property
    def entry_points(self) -> EntryPoints | None:
        """What ``--entry-points`` names."""
        given = self.arguments.entry_points
        return sources.load_entry_points(self.dense, given) if given else None

    def model(self, example_inputs: tuple[Any, ...] | None = None) -> nn.Module:
        """The pruned model; if it is a graph, for inputs of the shape of ``example_inputs``."""
        if self.saved.form != "graph":
            example_inputs = None
        return load(
            self.path,
            lambda: self.dense,
            tasks=self._tasks,
            example_inputs=example_inputs,
            entry_points=self.entry_points,
        )

    def tasks(self, model: nn.Module) -> tuple[Task, ...]:
        """The tasks as ``model``, the dense or the pruned one, returns them."""
        return tasks_of(model, self.saved.tasks(self._tasks))

    def check_inputs(self, model: nn.Module) -> list[tuple[Any, ...]]:
        """The first examples of ``--data``, as one batch for ``model``; none without it."""
        if self.arguments.data is None:
            return []
        marked = functools.partial(with_batch, model)
        return [first_inputs(model, load_data(self.arguments.data), CHECK_SAMPLES, marked)]


def export_entry(facts: ExportFacts) -> dict[str, Any]:
    """The report's entry about the ONNX file beside it, without the folder, which may be moved."""
    return dataclasses.asdict(facts) | {"path": ONNX}


def record(folder: Path, entries: Mapping[str, Any], *, html: bool = False) -> dict[str, Any]:
    """Adds ``entries`` to the report in ``folder``; writes its page if there is one or ``html`` is true."""
    report = extend_report(folder, entries)
    path = folder / PAGE
    if html or path.is_file():
        if path.is_file() and has_pictures(path.read_text(encoding="utf-8", errors="replace")):
            warnings.warn(
                f"{path.name} is written again, without the pictures that were in it. "
                "`disparse report FOLDER --images ... --model ...` puts them back.",
                DisparseWarning,
                stacklevel=2,
            )
        write_text(path, page(Run.of_folder(folder)))
    return report
