"""What a run hands back: the smaller model, the plan, and the report on both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from disparse_structured.checks import as_path
from disparse_structured.data.batches import ToInputs, batched_leaves
from disparse_structured.data.call import named_leaves
from disparse_structured.data.modes import plain_modes
from disparse_structured.decision.costs import Cost, distinct
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import OptionError
from disparse_structured.files import INT8_ONNX, ONNX, checksum, described_files, write_text
from disparse_structured.pipeline.examples import NUMBER, examples_of
from disparse_structured.report.deviation import DeviationFacts
from disparse_structured.report.page.html import page
from disparse_structured.report.page.notebook import result_html
from disparse_structured.report.page.pictures import Example
from disparse_structured.report.page.run import Run
from disparse_structured.report.pruning import (
    CostFacts,
    GraphFacts,
    GraphOnly,
    PruningReport,
    RefusedGroup,
    TaskFacts,
    VerificationFacts,
)
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.report.refit import RefitFacts
from disparse_structured.report.speed import SpeedFacts
from disparse_structured.scoring import Saliency
from disparse_structured.structure import Structure, UnusedModule
from disparse_structured.surgery import Applied, saving
from disparse_structured.surgery.pruned_graph import PrunedGraph, tasks_of
from disparse_structured.surgery.stored_inputs import describe_inputs
from disparse_structured.tasks import Task

if TYPE_CHECKING:
    from disparse_structured.report.facts import ExportFacts
    from disparse_structured.report.quantization import QuantizationFacts


@dataclass(frozen=True)
class _Exported:
    """Entries of a report on files that were exported with the weights of ``digest``."""

    digest: str
    entries: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class PruningResult:
    """The smaller model, and everything about how it came to be.

    Args:
        model: the smaller network: an ordinary module, or the pruned exported graph.
        plan: which units were removed, and who voted for it.
        report: costs, votes, deviations, verification, and what was left alone.
        tasks: name and output of each task of ``model``.
        example_inputs: the arguments of one forward pass.
    """

    model: nn.Module
    plan: Plan
    report: PruningReport
    tasks: tuple[Task, ...]
    example_inputs: tuple[Any, ...]
    _digest: str = field(repr=False, compare=False)
    """The digest of the weights that the report was measured with."""
    _exported: dict[Path, _Exported] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    """What was written beside ``model.onnx``, by folder."""

    @classmethod
    def of(
        cls,
        structure: Structure,
        saliency: Saliency,
        applied: Applied,
        deviation: DeviationFacts | None = None,
        refit: RefitFacts | None = None,
        costs: Iterable[Cost] = (),
        dropped: Sequence[UnusedModule] = (),
        speed: SpeedFacts | None = None,
        recovery: RecoveryFacts | None = None,
    ) -> PruningResult:
        """The result of one run; costs are counted on the pruned model itself, where they can be."""
        report = _report(
            structure, saliency, applied, deviation, refit, distinct(costs), tuple(dropped), speed, recovery
        )
        tasks = tasks_of(applied.model, structure.task_objects)
        digest = saving.weights_digest(applied.model)
        return cls(applied.model, applied.plan, report, tasks, structure.example_inputs, digest)

    def save(self, folder: str | Path, *, training: Mapping[str, Any] | None = None) -> None:
        """Writes ``plan.json``, ``weights.safetensors`` and ``report.json``: no pickle.

        The report also gets a checksum of the weights and a summary of what the model computes.
        :func:`disparse_structured.load` reads the folder and checks both. If :attr:`model` was trained in the
        meantime, the trained weights are saved, and the report says so in place of the deviations. ONNX files
        that :meth:`export` or :meth:`quantize` wrote there with the same weights are described too.

        Args:
            folder: where to write; it is created if needed.
            training: facts about the training as plain data, as in
                :func:`~disparse_structured.pipeline.save_back`.

        Raises:
            SaveError: the folder or a file cannot be written. What was there is unchanged.
        """
        folder = as_path("folder", folder)
        document = self._document(training) | self._entries(folder)
        saving.save(folder, self.model, self.plan, document, self.example_inputs)

    @plain_modes()
    def to_html(
        self,
        path: str | Path,
        *,
        inputs: Any = None,
        dense: nn.Module | None = None,
        dense_tasks: Sequence[Task] | None = None,
        to_inputs: ToInputs | None = None,
        number: int = NUMBER,
    ) -> None:
        """Writes one self-contained page about the run, which can be sent and printed.

        ``disparse report`` writes the page of a saved folder, which also covers its ONNX file. With
        ``inputs``, the page shows the first few of them, and each task's dense and pruned output as pictures.

        >>> import tempfile, torch, disparse_structured as ds
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> result = ds.prune(model, torch.randn(32, 4), macs=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result.to_html(Path(folder, "report.html"))
        ...     result.to_html(Path(folder, "shown.html"), inputs=torch.randn(8, 4), dense=model)

        Args:
            path: the file to write.
            inputs: inputs as ``prune`` takes them.
            dense: the network before pruning, needed with ``inputs``.
            dense_tasks: the tasks of ``dense``, if their outputs are picked in another way.
            to_inputs: maps a batch to the arguments of ``forward``, as in ``prune``.
            number: how many inputs to show.

        Raises:
            OptionError: there are ``inputs``, but no ``dense`` network.
            BatchError: a network refuses the inputs.
            MissingExtraError: pictures need Pillow, which is not installed.
            SaveError: the file cannot be written.
        """
        examples: Sequence[Example] = ()
        if inputs is not None:
            if dense is None:
                raise OptionError("inputs= are shown with the outputs of both networks. Pass dense= too.")
            before = (dense, self.tasks if dense_tasks is None else dense_tasks)
            examples = examples_of(inputs, before, (self.model, self.tasks), number, to_inputs)
        write_text(as_path("path", path), page(self._run, examples))

    def export(self, path: str | Path, **options: Any) -> ExportFacts:
        """Writes an ONNX file and checks it in ONNX Runtime; the outputs are named after the tasks.

        The report of a folder that this result is saved in then describes its ``model.onnx`` as well.
        ``options`` are those of :func:`disparse_structured.export.export_onnx`.

        Raises:
            ExportError: the file cannot be written, is not valid, or does not agree with PyTorch.
            SaveError: the file is there, but the report cannot be written.
        """
        facts = export_pruned(self.model, self.tasks, self.plan, self.example_inputs, path, **options)
        self._describe(Path(path), {"export": dataclasses.asdict(facts) | {"path": ONNX}})
        return facts

    @plain_modes()
    def quantize(
        self,
        images: torch.Tensor | Iterable[Any],
        path: str | Path,
        *,
        export: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> QuantizationFacts:
        """Exports to ``path``, and writes an INT8 file beside it as far as every task allows it.

        ``model.onnx`` is the float file, ``model.int8.onnx`` the other one. See
        :func:`disparse_structured.pipeline.quantize`. As with :meth:`export`, the report of the folder then
        describes both.

        Args:
            images: inputs as ``prune`` takes them, without labels. Half of them calibrate, the other half is
                compared.
            path: the float file to write.
            export: options of :meth:`export`.
            options: ``tolerance``, ``arbiter``, ``samples``, ``threads`` and ``rounds`` as in
                :func:`disparse_structured.pipeline.quantize`, ``to_inputs`` as in ``prune``; ``dense``, the
                network before pruning, so that both files are also compared with it, and ``dense_tasks``, if
                its tasks are picked in another way.

        Raises:
            ExportError: a file cannot be written, is not valid, or ONNX Runtime refuses it.
            OptionError: an option is out of range.
            TaskError: ``tolerance`` names an unknown task.
            BatchError: the images are too few, or the network refuses them.
        """
        from disparse_structured.pipeline.quantizing import quantize_result

        self.export(path, **(export or {}))
        facts = quantize_result(self, path, images, **options)
        names = {"path": facts.path and INT8_ONNX, "float_path": ONNX}
        self._describe(Path(path), {"int8": dataclasses.asdict(facts) | names})
        return facts

    def _describe(self, path: Path, entries: Mapping[str, Any]) -> None:
        """Adds ``entries`` to the report beside ``model.onnx``, at once if the folder holds this result."""
        if path.name != ONNX:
            return
        digest, folder = saving.weights_digest(self.model), path.parent.absolute()
        # An INT8 file is made of the float file, which was exported just before.
        earlier = {} if "export" in entries else self._exported[folder].entries
        self._exported[folder] = _Exported(digest, {**earlier, **entries})
        if saving.is_saved(folder, self.plan, digest):
            saving.extend_report(folder, entries)

    def _entries(self, folder: Path) -> dict[str, Any]:
        """What the report says of the files that were exported into ``folder``."""
        exported = self._exported.get(folder.absolute())
        if exported is None or exported.digest != saving.weights_digest(self.model):
            return {}
        return {name: entry for name, entry in exported.entries.items() if _is_described(folder, entry)}

    def __repr__(self) -> str:
        return f"PruningResult({type(self.model).__name__}, plan {self.plan.hash[:12]})"

    def __str__(self) -> str:
        return f"{self.plan}\n{self.report}"

    def _repr_html_(self) -> str:
        return result_html(self._run)

    @property
    def _run(self) -> Run:
        return Run.of_texts(type(self.model).__name__, json.dumps(self._document()), self.plan.to_json())

    def _document(self, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The report as it is now: without what was measured with other weights."""
        document: dict[str, Any] = json.loads(self.report.to_json())
        if training is not None or saving.weights_digest(self.model) != self._digest:
            document |= saving.changed_entries(training)
        return document


def export_pruned(
    model: nn.Module,
    tasks: Sequence[Task],
    plan: Plan,
    example_inputs: tuple[Any, ...],
    path: str | Path,
    **options: Any,
) -> ExportFacts:
    """Writes the ONNX file of a pruned ``model``; its metadata names the tasks and the plan.

    ``options`` and errors are those of :func:`disparse_structured.export.export_onnx`.
    """
    from disparse_structured.export import export_onnx  # ONNX is imported only where it is used

    outputs = {task.name: task.tensors for task in tasks}
    metadata = {"tasks": json.dumps(list(outputs)), "plan": plan.hash}
    return export_onnx(model, example_inputs, path, **{"outputs": outputs, "metadata": metadata, **options})


def _is_described(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the file of ``entry`` is in ``folder`` as it was written, or was not written at all."""
    if entry["path"] is None:
        return True
    files = described_files(folder / entry["path"], entry)
    return all(file.is_file() for file in files) and checksum(*files) == entry["sha256"]


def _report(
    structure: Structure,
    saliency: Saliency,
    applied: Applied,
    deviation: DeviationFacts | None,
    refit: RefitFacts | None,
    costs: Iterable[Cost],
    dropped: tuple[UnusedModule, ...],
    speed: SpeedFacts | None,
    recovery: RecoveryFacts | None,
) -> PruningReport:
    plan, verification = applied.plan, applied.verification
    keep = plan.keep(structure)
    provenance = plan.provenance
    refused = [refusal.group for refusal in applied.refused]
    return PruningReport(
        model=type(applied.model).__name__,
        plan=plan.hash,
        costs={cost.name: _cost_facts(cost, structure, keep, applied.model) for cost in costs},
        tasks=tuple(
            _task_facts(task, row, task.name in saliency.labeled, structure, plan, keep)
            for row, task in _rows(structure)
        ),
        groups=len(structure.groups),
        groups_changed=len(plan.removals),
        units=structure.units,
        units_removed=int((~keep).sum()),
        method=provenance.method,
        criterion=saliency.criterion,
        arbiter=provenance.arbiter,
        ranking=provenance.ranking,
        ratio=provenance.ratio,
        batches=saliency.batches,
        samples=saliency.samples,
        deviation=deviation,
        refit=refit,
        verification=VerificationFacts(
            True,
            verification.dtype,
            verification.tolerance,
            verification.deviation,
            verification.empty,
            verification.beyond,
        )
        if verification
        else VerificationFacts(False),
        refused=tuple(RefusedGroup(each.group, each.reason) for each in applied.refused),
        stale=applied.stale,
        pinned=structure.pinned,
        unused=tuple(
            dataclasses.replace(each, unfit=each.module in applied.unfit) for each in structure.unused
        ),
        dropped=dropped,
        graph=_graph_facts(applied.model),
        graph_only=GraphOnly.of(structure.graph_only, _held_by(refused, structure)),
        inputs=describe_inputs(structure.example_inputs),
        selectors={
            task.name: None if callable(task.output) else task.output for task in structure.task_objects
        },
        versions=dict(provenance.versions),
        entry_points={
            each.entry.name: None if each.entry.inputs is None else describe_inputs(each.entry.inputs)
            for each in structure.entry_points
        },
        shared_inputs=_shared(applied.model, structure.example_inputs),
        speed=speed,
        recovery=recovery,
    )


def _shared(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    leaves = zip(named_leaves(model.forward, inputs), batched_leaves(inputs), strict=True)
    return tuple(name for (name, leaf), batched in leaves if isinstance(leaf, torch.Tensor) and not batched)


def _cost_facts(cost: Cost, structure: Structure, keep: torch.Tensor, pruned: nn.Module) -> CostFacts:
    model = cost.on(structure)
    counted = cost.count(pruned, structure.example_inputs)
    return CostFacts(cost.unit, model.dense, model.total(keep), counted)


def _graph_facts(model: nn.Module) -> GraphFacts | None:
    return GraphFacts(model.examples, model.any_batch) if isinstance(model, PrunedGraph) else None


def _held_by(groups: Sequence[str], structure: Structure) -> float:
    """The share of the dense parameters that lies in slices of ``groups``."""
    keep = torch.ones(structure.units, dtype=torch.bool)
    dense = structure.cost.parameters.dense
    for name in groups:
        keep[structure.group(name).slice] = False
    return 1 - structure.cost.parameters.total(keep) / dense if dense else 0.0


def _rows(structure: Structure) -> Iterable[tuple[int, Task]]:
    return enumerate(structure.task_objects)


def _task_facts(
    task: Task, row: int, labeled: bool, structure: Structure, plan: Plan, keep: torch.Tensor
) -> TaskFacts:
    reached = structure.reach[row]
    units = int(reached.sum())
    asked = sum(len(dict(group.votes).get(task.name, ())) for group in plan.groups)
    return TaskFacts(
        name=task.name,
        labeled=labeled,
        units=units,
        shared=int((reached & (structure.reach.sum(dim=0) > 1)).sum()),
        asked=asked / units if units else 0.0,
        removed=int((reached & ~keep).sum()) / units if units else 0.0,
    )
