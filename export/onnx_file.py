"""Exports a module to an ONNX file that is verified before it gets its name."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.checks import as_path, check_callable, check_object, is_number, shown
from disparse_structured.data.batches import batched_leaves
from disparse_structured.errors import DisparseWarning, ExportError, OptionError
from disparse_structured.export.attention import TRANSLATIONS
from disparse_structured.export.forms import (
    CheckCase,
    Form,
    Layout,
    arranged,
    cases_of,
    fitting,
    wanted_forms,
)
from disparse_structured.export.parity import compare
from disparse_structured.export.plain import (
    Binding,
    Inputs,
    Outputs,
    TaskOutputs,
    arguments_of,
    checked_inputs,
    output_names,
    plain_copy,
    reference,
)
from disparse_structured.export.quiet import quiet
from disparse_structured.export.reasons import reason
from disparse_structured.export.session import open_session
from disparse_structured.files import checksum
from disparse_structured.graph.batching import with_batch
from disparse_structured.graph.collection import without_collection
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.report.facts import ExportFacts, ParityFact, TensorFact

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


@dataclass(frozen=True)
class _Job:
    """What every form of one export has in common."""

    model: TaskOutputs
    layout: Layout
    checks: Sequence[Inputs]
    inputs: Sequence[str]
    outputs: Mapping[str, Sequence[str]]
    metadata: Mapping[str, str]
    tolerance: float
    external_data: bool
    opset: int | None


@leaves_no_trace
def export_onnx(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    outputs: Outputs,
    metadata: Mapping[str, str] | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = True,
    narrower: bool = True,
    opset: int | None = None,
    check_inputs: Sequence[Any] | None = None,
    tolerance: float = 1e-4,
    single_file_bytes: int = 1_800_000_000,
) -> ExportFacts:
    """Write ``model`` in eval mode as an ONNX file that agrees with PyTorch, or write nothing.

    The widest form that holds is used: free batch and size, free batch, all fixed. A form holds if
    PyTorch takes other batches (1, 2, 3) and larger sizes itself, the exporter writes the form, the file
    passes the ONNX checker and strict shape inference, and ONNX Runtime agrees with PyTorch
    (:func:`~disparse_structured.export.check_parity`) on all of these and on ``check_inputs``. The facts
    say why a wider form was not used.

    The model is copied (to the CPU, in its own precision), never changed. The file appears under its
    name only once it is verified; an earlier file is kept if the export fails.

    Args:
        model: any module.
        example_inputs: the arguments of ``forward``: a tensor, a tuple, or a dict by name. Every tensor in
            them is an input of the file; everything else is fixed. Which of them have a batch dimension is
            found by running the model with one more example. The size is the dimensions from the third on of
            batched inputs, or where the model takes no others, those between the first and the last one. It
            is also the second dimension of token ids and of two-dimensional inputs of the same length. One
            sample is enough.
        path: the file to write; its folder is created.
        outputs: task name -> function that picks the task's tensor, or list of tensors, from what the
            model returns. A task of one tensor names its output; several are ``name.0``, ``name.1``, ….
        metadata: entries to write into the file besides ``outputs`` (JSON, task -> output names),
            ``dynamic`` (the form) and the versions of torch, onnx and this package.
        dynamic_batch: whether to try a free batch.
        dynamic_size: whether to try a free size.
        narrower: whether a narrower form may be written if the requested one is not possible; if False, that
            is an error.
        opset: version of the ONNX operators; by default that of the exporter.
        check_inputs: real batches to compare on. Those that do not fit the file's fixed dimensions are
            listed in the facts as unchecked.
        tolerance: largest relative error that passes, see ``check_parity``.
        single_file_bytes: weights above this many bytes are stored in ``<path>.data`` beside the file,
            because an ONNX file is limited to 2 GB.

    Raises:
        OptionError: an argument is of the wrong kind or out of range.
        ExportError: PyTorch refuses the example, torch cannot export the model (with its reason and the
            line), the file is not valid, or ONNX Runtime refuses it or differs from PyTorch.
    """
    path = as_path("path", path)
    check_object("outputs", outputs, Mapping, "a dict from tasks to functions that pick their tensors")
    for task, pick in outputs.items():
        check_callable(f"outputs[{task!r}]", pick, 1, "Pass a function that picks the task's tensors.")
    if not is_number(tolerance) or tolerance < 0:
        raise OptionError(f"tolerance={shown(tolerance)} must be a finite number of at least 0.")
    if check_inputs is not None:
        check_object("check_inputs", check_inputs, Sequence, "a list of batches")
    if metadata is not None:
        check_object("metadata", metadata, Mapping, "a dict of strings")
    given = with_batch(model, arguments_of(model, example_inputs, "example_inputs"))
    example, binding = checked_inputs(given, "example_inputs"), Binding.of(model, given)
    checks = _checked_batches(model, check_inputs or (), example)
    own = plain_copy(model, outputs, binding)
    names = output_names(reference(own, example))
    pairs = zip(pytree.tree_leaves(given), batched_leaves(given), strict=True)
    layout = Layout(example, tuple(batched for leaf, batched in pairs if isinstance(leaf, torch.Tensor)))
    layout = arranged(layout, own) if dynamic_size else layout
    job = _Job(
        model=own,
        layout=layout,
        checks=checks,
        inputs=_input_names(binding, names),
        outputs=names,
        metadata=_checked_metadata(metadata or {}, names),
        tolerance=tolerance,
        external_data=_weight_bytes(own) > single_file_bytes,
        opset=opset,
    )
    forms, narrowed = wanted_forms(layout, batch=dynamic_batch, size=dynamic_size)
    if not narrower:
        if forms[0] != Form(dynamic_batch, dynamic_size):
            raise ExportError(
                f"the form {Form(dynamic_batch, dynamic_size).name!r} is not possible: {'; '.join(narrowed)}."
            )
        forms, narrowed = forms[:1], []
    make_folder(path)
    with _drafts(path) as folder:
        for form in forms:
            draft = Path(folder, form.name, path.name)
            draft.parent.mkdir()
            try:
                parity, unchecked = _write_and_verify(job, form, draft)
                break
            except ExportError as error:
                if form is forms[-1]:
                    raise ExportError(_failure(model, path, error, narrowed)) from error
                narrowed.append(f"{form.name}: {error}".removesuffix("."))
        facts = _facts(draft, path, form, parity, narrowed, unchecked, binding.constants)
        # The data first, so that the file finds its weights as soon as it exists.
        for finished in sorted(draft.parent.iterdir(), key=lambda file: file == draft):
            os.replace(finished, path.parent / finished.name)
    return facts


@contextmanager
def _drafts(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for its drafts, which is removed afterward."""
    try:
        with tempfile.TemporaryDirectory(prefix=".draft.", dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written: {error.strerror or error}. Free some space, or choose another path."
        ) from error


def _write_and_verify(job: _Job, form: Form, draft: Path) -> tuple[tuple[ParityFact, ...], list[str]]:
    trace, cases = cases_of(form, job.layout, job.model)
    fitted, unchecked = fitting(job.checks, form, job.layout)
    cases += [CheckCase(batch, reference(job.model, batch)) for batch in fitted]
    _write(job, form, trace, draft)
    try:
        _check_file(draft)
    except ExportError:  # torch's optimizer may lose the bounds of a Clip that it merges from two
        _write(job, form, trace, draft, optimize=False)
        _check_file(draft)
    if job.opset not in (None, opset_of(draft)):
        raise ExportError(
            f"torch cannot write opset {job.opset} for this model, only {opset_of(draft)}. Leave opset out"
        )
    session = open_session(draft, threads=torch.get_num_threads())
    facts = [
        fact
        for case in cases
        for fact in compare(session, job.model, case.inputs, case.expected, job.tolerance)
    ]
    return tuple(facts), unchecked


def _write(job: _Job, form: Form, trace: Inputs, draft: Path, *, optimize: bool = True) -> None:
    outputs = [name for names in job.outputs.values() for name in names]
    try:
        with quiet(), without_collection(), torch.no_grad():
            program = torch.onnx.export(
                job.model,
                trace,
                dynamo=True,
                verbose=False,
                input_names=list(job.inputs),
                output_names=outputs,
                dynamic_shapes=(job.layout.free(form),),
                custom_translation_table=TRANSLATIONS,
                opset_version=job.opset,
                optimize=optimize,
            )
            assert program is not None  # torch returns None for its older exporter only
            for value, name in zip(program.model.graph.outputs, outputs, strict=True):
                if value.name != name:  # torch 2.10, where two tasks have one tensor
                    value.name = name
            # torch gives the inputs and outputs their names even if other values are called so.
            ir.passes.common.NameFixPass()(program.model)
            for node in program.model.graph.all_nodes():
                # Keeps source text and paths of the exporting machine out of the file.
                node.metadata_props.pop(_STACK_TRACE, None)
            program.model.metadata_props.update({**job.metadata, "dynamic": form.name})
            program.save(draft, external_data=job.external_data)
    except Exception as error:
        raise ExportError(f"torch.onnx.export failed: {reason(error)}") from error


def _check_file(draft: Path) -> None:
    inferred = draft.with_name("inferred")
    try:
        onnx.checker.check_model(draft, full_check=True)
        onnx.shape_inference.infer_shapes_path(draft, inferred, check_type=True, strict_mode=True)
    except Exception as error:
        raise ExportError(f"the exported file is not valid ONNX: {reason(error)}") from error
    finally:
        inferred.unlink(missing_ok=True)


def _facts(
    draft: Path,
    path: Path,
    form: Form,
    parity: tuple[ParityFact, ...],
    narrowed: Sequence[str],
    unchecked: Sequence[str],
    constants: Mapping[str, Any],
) -> ExportFacts:
    files = [draft, *(file for file in draft.parent.iterdir() if file != draft)]
    model = onnx.load(draft, load_external_data=False)
    return ExportFacts(
        path=str(path),
        bytes=sum(file.stat().st_size for file in files),
        sha256=checksum(*files),
        external_data=len(files) > 1,
        opset=opset_of(draft),
        dynamic=form.name,
        narrowed=tuple(narrowed),
        inputs=tuple(_tensor_fact(value) for value in model.graph.input),
        outputs=tuple(_tensor_fact(value) for value in model.graph.output),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        parity=parity,
        unchecked=tuple(unchecked),
        constants={name: repr(value) for name, value in constants.items()},
    )


def opset_of(path: Path) -> int:
    """The version of the ONNX operators in a file."""
    model = onnx.load(path, load_external_data=False)
    found: int = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return found


def _tensor_fact(value: onnx.ValueInfoProto) -> TensorFact:
    kind = value.type.tensor_type
    return TensorFact(
        name=value.name,
        dtype=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        shape=tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
    )


def _checked_batches(model: nn.Module, batches: Sequence[Any], example: Inputs) -> list[Inputs]:
    names = [f"check_inputs[{number}]" for number in range(len(batches))]
    checked = [
        checked_inputs(arguments_of(model, batch, name), name)
        for name, batch in zip(names, batches, strict=True)
    ]
    kinds = [tensor.dtype for tensor in example]
    for number, batch in enumerate(checked):
        found = [tensor.dtype for tensor in batch]
        if found != kinds:
            raise ExportError(f"check_inputs[{number}] has the types {found}, but the example has {kinds}.")
    return checked


def _input_names(binding: Binding, outputs: Mapping[str, Sequence[str]]) -> list[str]:
    names = [name for task_names in outputs.values() for name in task_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(f"two tasks give an output named {twice[0]!r}. Rename one of them.")
    used = {*names, *binding.names}
    renamed: dict[str, str] = {}
    for name in binding.names:
        if name in names:
            renamed[name] = _free(f"{name}_input", used)
            used.add(renamed[name])
    if renamed:
        name, other = next(iter(renamed.items()))
        warnings.warn(
            f"the output {name!r} has the name of an input, which becomes {other!r} in the file. Give the "
            "task another name to keep the input's.",
            DisparseWarning,
            stacklevel=4,
        )
    return [renamed.get(name, name) for name in binding.names]


def _free(name: str, used: Collection[str]) -> str:
    while name in used:
        name = f"{name}_input"
    return name


def _checked_metadata(metadata: Mapping[str, str], outputs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    own = {
        "outputs": json.dumps(outputs),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "disparse-structured": _own_version(),
    }
    for key, value in metadata.items():
        if key in own or key == "dynamic":
            raise ExportError(
                f"the metadata key {key!r} is written by the export itself. Choose another key."
            )
        if not isinstance(key, str) or not isinstance(value, str):
            raise ExportError(f"metadata {key!r}: ONNX holds strings only, found a {type(value).__name__}.")
    return {**metadata, **own}


def _own_version() -> str:
    try:
        return importlib.metadata.version("disparse-structured")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _weight_bytes(model: nn.Module) -> int:
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def make_folder(path: Path) -> None:
    """The folder of a file to write; raises :class:`ExportError` if there can be none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"the folder {path.parent} cannot be created: {error}") from error
    if path.is_dir():
        raise ExportError(f"{path} is a folder. Give the path of the file to write.")


def _failure(model: nn.Module, path: Path, error: ExportError, narrowed: Sequence[str]) -> str:
    text = str(error)
    others = [line for line in narrowed if line.partition(": ")[2] != text.removesuffix(".")]
    wider = f" Wider forms were not possible either: {'; '.join(others)}." if others else ""
    narrow = "unsupported type: tensor(bfloat16)" in text
    remedy = " ONNX has no such layer: turn torch.autocast off in forward for the export." if narrow else ""
    return f"{type(model).__name__} was not exported, nothing was written to {path}: {text}{remedy}{wider}"
