"""What each task takes alone, and what it adds to the others, in a runtime on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import nn

from disparse_structured.data.modes import plain_modes
from disparse_structured.errors import OptionError
from disparse_structured.latency import Latency, OnnxRuntime, Runtime
from disparse_structured.pipeline.latency import EARLY
from disparse_structured.report.text import numbers_table, plain_text
from disparse_structured.structure import analyse
from disparse_structured.surgery.extraction import extract
from disparse_structured.tasks import Task, check_tasks


@dataclass(frozen=True)
class TaskLatency:
    """Milliseconds of one task: ``alone``, in a network of its own, and what it ``adds`` to the others."""

    task: str
    alone: float
    adds: float


@dataclass(frozen=True)
class TaskLatencies:
    """Milliseconds of the ``whole`` network and of each of its tasks."""

    whole: float
    tasks: tuple[TaskLatency, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = numbers_table("task", "alone, ms", "adds to the others, ms")
        for each in self.tasks:
            table.add_row(Text(each.task), f"{each.alone:.3g}", f"{each.adds:.3g}")
        yield table
        yield Text(f"all tasks together: {self.whole:.3g} ms")

    def __str__(self) -> str:
        return plain_text(self)


@plain_modes()
def task_latencies(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor,
    tasks: Sequence[Task],
    runtime: Runtime | None = None,
    *,
    rounds: int = 60,
) -> TaskLatencies:
    """Time the network, the smallest network for each task, and the smallest one without it.

    The networks are those of :func:`~disparse_structured.surgery.extraction.extract`. Each is exported, and
    all run in turn. What a task adds is the difference between the whole network and the one without it; it
    is near 0, and may be below it, for a task whose head is small.

    >>> import disparse_structured as ds
    >>> from torch import nn, rand
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.trunk = nn.Conv2d(3, 16, 3)
    ...         self.near, self.far = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 9, 3)
    ...     def forward(self, x):
    ...         x = self.trunk(x).relu()
    ...         return {"near": self.near(x), "far": self.far(x)}
    >>> tasks = [ds.Task("near", "near"), ds.Task("far", "far")]
    >>> found = task_latencies(Net().eval(), rand(2, 3, 32, 32), tasks)
    >>> [each.task for each in found.tasks]
    ['near', 'far']

    Args:
        model: any module that ``torch.export`` can capture; it is left unchanged.
        example_inputs: the positional arguments of one forward pass, batch first.
        tasks: at least two.
        runtime: :class:`~disparse_structured.latency.OnnxRuntime` by default.
        rounds: how often each network runs.

    Raises:
        OptionError: ``rounds`` is below 1, or there is only one task.
        VerificationError, CaptureError: as from ``extract``.
        ExportError: a network cannot be exported, or the runtime refuses it.
    """
    if rounds < 1:
        raise OptionError(f"rounds must be at least 1, got {rounds}.")
    chosen = check_tasks(tasks)
    names = [task.name for task in chosen]
    if len(names) < 2:
        raise OptionError(f"there is only the task {names[0]!r}, so there is nothing to compare it with.")
    runtime = OnnxRuntime() if runtime is None else runtime
    parts: dict[tuple[str, ...], nn.Module] = {tuple(names): model}
    for name in names:
        for kept in ((name,), tuple(other for other in names if other != name)):
            if kept not in parts:
                parts[kept] = extract(model, example_inputs, chosen, kept).model
    with tempfile.TemporaryDirectory() as folder:
        paths = {kept: Path(folder, f"{number}.onnx") for number, kept in enumerate(parts)}
        for kept, part in parts.items():
            own = analyse(part, example_inputs, [task for task in chosen if task.name in kept])
            inputs = Latency(part, runtime).export(part, own, paths[kept])
        times = np.quantile(runtime.time_files(list(paths.values()), inputs, rounds=rounds), EARLY, axis=0)
    ms = dict(zip(parts, times.tolist(), strict=True))
    whole = ms[tuple(names)]
    return TaskLatencies(
        whole,
        tuple(
            TaskLatency(name, ms[(name,)], whole - ms[tuple(other for other in names if other != name)])
            for name in names
        ),
    )
