"""Whether a saved folder is intact and its model computes what was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import nn

from disparse_structured.data.modes import plain_modes
from disparse_structured.errors import DisparseError, ExportError, LoadError
from disparse_structured.files import INT8_ONNX, ONNX, checksum, described_files
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.report.text import numbers_table, plain_text
from disparse_structured.surgery.pruned_graph import PrunedGraph, tasks_of
from disparse_structured.surgery.saved import REPORT, Saved
from disparse_structured.tasks import Task

ONNX_FILES = {"export": ONNX, "int8": INT8_ONNX}
"""The ONNX files of a folder, by the report's entry about each."""


@dataclass(frozen=True)
class Check:
    """One check. ``passed`` is None if it could not be made; ``found`` then says why."""

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class FolderChecks:
    """The checks of a folder."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(check.passed is False for check in self.checks)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        words = {True: "passed", False: "FAILED", None: "not checked"}
        table = numbers_table("check", "")
        for check in self.checks:
            table.add_row(Text(check.name), words[check.passed])
        yield table
        for check in self.checks:
            yield Text(f"{check.name}: {check.found}")

    def __str__(self) -> str:
        return plain_text(self)


@plain_modes()
def check_folder(
    folder: str | Path,
    factory: Callable[[], nn.Module] | None = None,
    *,
    tasks: Sequence[Task | str] | None = None,
    entry_points: EntryPoints | None = None,
    inputs: Sequence[tuple[Any, ...]] = (),
) -> FolderChecks:
    """Check a folder that ``save`` or ``disparse prune`` wrote.

    The plan and the report must belong together, the weights must have the checksum that was stored, and so
    must the ONNX files. With a ``factory``, the model is built as :func:`disparse_structured.load` builds it,
    must compute what was stored, and is compared with ``model.onnx`` in ONNX Runtime.

    >>> import tempfile, torch, disparse_structured as ds
    >>> def build():
    ...     torch.manual_seed(0)
    ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ds.prune(build(), torch.randn(32, 4), macs=0.5).save(folder)
    ...     found = check_folder(folder, build)
    >>> [(check.name, check.passed) for check in found.checks]
    [('plan and report', True), ('weights', True), ('ONNX file', None), ('model', True), ('outputs', True)]

    Args:
        folder: the folder. Nothing in it is executed or changed.
        factory: builds the dense model.
        tasks: as in ``load``.
        entry_points: as in ``load``.
        inputs: real batches, each the arguments of ``forward``, on which the ONNX file is compared as well.
            It is always compared on random inputs like the stored example.

    Raises:
        MissingExtraError: there is an ONNX file, and ONNX Runtime is not installed.
    """
    return FolderChecks(tuple(_checks(Path(folder), factory, tasks, entry_points, inputs)))


def _checks(
    folder: Path,
    factory: Callable[[], nn.Module] | None,
    tasks: Sequence[Task | str] | None,
    entry_points: EntryPoints | None,
    inputs: Sequence[tuple[Any, ...]],
) -> Iterator[Check]:
    try:
        saved = Saved.read(folder)
    except DisparseError as error:
        yield Check("plan and report", False, str(error))
        return
    removed = saved.report.get("units_removed")
    yield Check("plan and report", True, f"plan {saved.plan.hash[:12]}, {removed} units removed")
    yield _weights(saved)
    yield from (
        _file(saved, entry, name) for entry, name in ONNX_FILES.items() if _expected(saved, entry, name)
    )
    if factory is None:
        yield Check("model", None, "no factory was given, so the model was not built")
        return
    built = _Built(saved, factory, tasks, entry_points)
    try:
        model = built.model()
    except DisparseError as error:
        yield Check("model", False, str(error))
        return
    yield Check("model", True, f"the plan and the weights fit {type(model).__name__}")
    yield _outputs(saved, model)
    if (folder / ONNX).is_file():
        yield _parity(built, model, inputs)


def _weights(saved: Saved) -> Check:
    try:
        tensors = saved.weights()
    except LoadError as error:
        return Check("weights", False, str(error))
    known = saved.report.get("weights_sha256")
    if known is None:
        return Check("weights", None, f"{REPORT} has no checksum. Save the model again")
    return Check("weights", True, f"{len(tensors)} tensors, SHA-256 {known[:12]}…")


def _expected(saved: Saved, entry: str, name: str) -> bool:
    return entry == "export" or entry in saved.report or (saved.folder / name).is_file()


def _file(saved: Saved, entry: str, name: str) -> Check:
    """The file is the one that the report describes, and ONNX Runtime opens it."""
    label = "ONNX file" if entry == "export" else "INT8 file"
    described: Mapping[str, Any] = saved.report.get(entry) or {}
    path, known = saved.folder / name, described.get("sha256")
    files = described_files(path, described)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        if known is None:
            return Check(label, None, f"there is no {name}")
        return Check(label, False, f"{missing[0]}, which {REPORT} describes, is missing. Export again.")
    found = checksum(*files)
    if known is None:
        return Check(
            label, None, f"{REPORT} does not describe {name}: it may hold earlier weights. Export again."
        )
    if found != known:
        return Check(
            label,
            False,
            f"the SHA-256 of {name} is {found[:12]}…, {REPORT} says {known[:12]}…. Export again.",
        )
    from disparse_structured.export.session import open_session  # ONNX is imported only where it is used

    try:
        open_session(path, threads=1)
    except ExportError as error:
        return Check(label, False, str(error))
    return Check(label, True, f"{name}, SHA-256 {found[:12]}…")


@dataclass(frozen=True, eq=False)
class _Built:
    """How the model of a folder is built."""

    saved: Saved
    factory: Callable[[], nn.Module]
    tasks: Sequence[Task | str] | None
    entry_points: EntryPoints | None

    def model(self, example_inputs: tuple[Any, ...] | None = None) -> nn.Module:
        """The model; if it is a graph, for inputs of the shape of ``example_inputs``."""
        return self.saved.model(
            self.factory, tasks=self.tasks, entry_points=self.entry_points, example_inputs=example_inputs
        )


def _outputs(saved: Saved, model: nn.Module) -> Check:
    probe = saved.report.get("computes")
    if not isinstance(probe, Mapping) or "outputs" not in probe:
        reason = probe.get("reason") if isinstance(probe, Mapping) else "the report has no summary of them"
        return Check("outputs", None, str(reason))
    otherwise = saved.computes_otherwise(model)
    if otherwise is None:
        return Check("outputs", None, "the model was built for another input size")
    if otherwise:
        return Check(
            "outputs",
            False,
            "the model does not compute what the saved model computed: the factory's model uses the weights "
            "differently. Check the factory.",
        )
    return Check("outputs", True, "as stored, on the stored inputs")


def _parity(built: _Built, model: nn.Module, inputs: Sequence[tuple[Any, ...]]) -> Check:
    """``model.onnx`` agrees with the model."""
    from disparse_structured.export import check_parity  # ONNX is imported only where it is used
    from disparse_structured.export.session import free_batch, open_session, shaped_for

    saved, path = built.saved, built.saved.folder / ONNX
    try:
        session = open_session(path, threads=1)
        counts = (1, 2, 3) if free_batch(session) else (None,)
        batches = [shaped_for(session, saved.inputs(), batch=count) for count in counts]
        if isinstance(model, PrunedGraph) and not model.takes(batches[0]):
            model = built.model(batches[-1])
        outputs = {task.name: task.tensors for task in tasks_of(model, saved.tasks(built.tasks))}
        facts = check_parity(model, path, [*batches, *inputs], outputs=outputs)
    except DisparseError as error:
        return Check("ONNX parity", False, str(error))
    worst = max(facts, key=lambda fact: fact.max_rel)
    sizes = ", ".join(map(str, sorted({fact.batch for fact in facts})))
    return Check(
        "ONNX parity",
        True,
        f"agrees with PyTorch within {worst.max_rel:.1e} ({worst.task}, batches of {sizes})",
    )
