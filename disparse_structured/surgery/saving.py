"""A pruned model as a folder: ``plan.json``, ``weights.safetensors``, ``report.json``. No pickle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from disparse_structured.checks import as_path, check_callable
from disparse_structured.data.modes import plain_modes
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import (
    DifferentModelWarning,
    DisparseError,
    LoadError,
    OptionError,
    SaveError,
)
from disparse_structured.files import checksum, made_folder, replacing, write_text
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.graph.named_tensors import digest, persistent_tensors
from disparse_structured.report.schemas import document_text, read_document
from disparse_structured.surgery.saved import PLAN, REPORT, WEIGHTS, Saved
from disparse_structured.surgery.stored_inputs import described_inputs
from disparse_structured.surgery.summaries import probe_of
from disparse_structured.tasks import Task

OUTDATED = ("export", "int8")
"""Entries of a report about files with the weights, which are outdated once the weights have changed."""


def save(
    folder: str | Path, model: nn.Module, plan: Plan, report: Mapping[str, Any], inputs: tuple[Any, ...]
) -> None:
    """Write ``model`` (the result of ``plan``) into ``folder``, which is created if needed.

    Tied tensors are written once. The files are replaced once all of them are complete. ``report.json`` also
    gets the SHA-256 checksum of the weights and a summary of what the model computes for tensors like those
    of ``inputs``; :func:`load` checks both.

    Raises:
        SaveError: the folder or a file cannot be written.
    """
    folder = made_folder(as_path("folder", folder))
    computes = (
        {"reason": "the model's inputs cannot be stored"}
        if "unknown" in report["inputs"]
        else probe_of(model, inputs)
    )
    _write(folder, model, plan, {**report, "computes": computes})


def save_back(
    folder: str | Path,
    model: nn.Module,
    *,
    training: Mapping[str, Any] | None = None,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """Write the weights of a trained ``model`` back into the folder that it was loaded from.

    ``report.json`` gets the new checksum and a new summary of what the model computes, so that
    :func:`disparse_structured.load` accepts the folder. Deviations from the dense network are removed from
    the report, because they are unknown. So are the facts about ONNX files, which contain the earlier
    weights: export again. The files are replaced once all of them are complete.

    >>> import tempfile, torch, disparse_structured as ds
    >>> def build():
    ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ds.prune(build(), torch.randn(32, 4), macs=0.5).save(folder)
    ...     model = ds.load(folder, build)
    ...     model[2].bias.data += 1  # your training
    ...     report = ds.pipeline.save_back(folder, model)
    ...     again = ds.load(folder, build)
    >>> bool((again[2].bias == model[2].bias).all()), report["weights_changed"], report["deviation"]
    (True, True, None)

    Args:
        folder: the folder, which :meth:`~disparse_structured.pipeline.PruningResult.save` or ``disparse
            prune`` wrote.
        model: what :func:`disparse_structured.load` returned for it, trained. It is left unchanged.
        training: facts about the training as plain data, for the report's entry ``training``: at least
            ``losses``, by task the loss after each epoch.
        to: write another folder instead, which is created if needed.

    Returns:
        The new content of ``report.json``.

    Raises:
        LoadError: the folder is not a saved one.
        SaveError: ``model`` has other tensors than the folder, or a file cannot be written. What was there is
            unchanged.
    """
    saved = Saved.read(as_path("folder", folder))
    _check_fits(model, saved)
    report = {name: entry for name, entry in saved.report.items() if name not in OUTDATED}
    if "unknown" not in report["inputs"]:
        report["computes"] = probe_of(model, described_inputs(report["inputs"]), report.get("computes"))
    report.update(changed_entries(training))
    target = saved.folder if to is None else made_folder(as_path("to", to))
    return _write(target, model, saved.plan, report)


def changed_entries(training: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a report says once the weights are no longer those that it was measured with."""
    known = {} if training is None else {"training": dict(training)}
    return {"weights_changed": True, "deviation": None, **known}


def extend_report(folder: str | Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``entries``, plain data, to the ``report.json`` of a folder that :func:`save` wrote.

    Returns:
        The complete updated report.

    Raises:
        LoadError: there is no such report, or it is damaged.
    """
    path = Path(folder) / REPORT
    document = {**read_document(path, "report"), **entries}
    write_text(path, _text(document))
    return document


def load(
    folder: str | Path,
    factory: Callable[[], nn.Module],
    *,
    tasks: Sequence[Task | str] | None = None,
    example_inputs: tuple[Any, ...] | torch.Tensor | Mapping[str, Any] | None = None,
    entry_points: EntryPoints | None = None,
) -> nn.Module:
    """Load the pruned model of ``folder``, in eval mode.

    ``factory`` builds the dense model, the plan is replayed on it, and the weights are loaded.

    A pruned graph is loaded as one: it returns ``{task: tensor}`` and takes the same batches as before. Its
    other sizes are those of ``example_inputs``: pass inputs of another image size or length, which the dense
    model takes, and the graph is made for that size. For a model that was pruned twice, pass
    ``lambda: load(first_folder, factory)`` as the second's factory.

    Args:
        example_inputs: the arguments of one forward pass, if the report could not describe them, or if a
            pruned graph is to take inputs of another shape.
        tasks: the tasks as given to ``prune``, needed if the model is a pruned graph and the output of one
            of them is picked by a callable: the folder holds keys, indices and paths, but no code.
        entry_points: as given to :func:`~disparse_structured.analyse`, needed if one of them is a function.

    Raises:
        OptionError: an argument is of the wrong kind.
        UnsupportedModelError: the factory does not return a module, or it returns a wrapped or quantized one.
        LoadError: a file is missing, damaged or does not belong to the others, or the weights or tasks do
            not fit.
        PlanError: the factory builds a different model from the one the plan was made for.
        TaskError: a task picks nothing from what the factory's model returns.

    Warns:
        DifferentModelWarning: the model does not compute what the saved one computed. Nothing is compared if
            a graph is loaded for another size, or the saved model drew random numbers.
    """
    folder = as_path("folder", folder)
    if isinstance(factory, nn.Module):
        raise OptionError(
            f"factory is a {type(factory).__name__} object. Pass a function that builds the dense model."
        )
    check_callable("factory", factory, 0, "Pass a function that builds the dense model.", classes=True)
    saved = Saved.read(folder)
    with plain_modes():
        model = saved.model(factory, tasks=tasks, example_inputs=example_inputs, entry_points=entry_points)
        differs = saved.computes_otherwise(model)
    if differs:
        warnings.warn(
            f"the model loaded from {str(saved.folder)!r} does not compute what the saved model computed: "
            "the weights fit, but the factory's model uses them differently (a different activation, "
            "scale or normalization, for example). Check the factory.",
            DifferentModelWarning,
            stacklevel=2,
        )
    return model


def is_saved(folder: Path, plan: Plan, weights: str) -> bool:
    """Whether ``folder`` holds ``plan`` and the weights of this digest."""
    try:
        saved = Saved.read(folder)
        return saved.plan.hash == plan.hash and digest(saved.weights()) == weights
    except DisparseError:
        return False


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of the names and values of what :func:`save` would write."""
    return digest(_weights(model))


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in persistent_tensors(model).items()}


def _write(folder: Path, model: nn.Module, plan: Plan, report: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the files together, and returns the report with the weights' checksum."""
    with ExitStack() as drafts:
        weights = drafts.enter_context(replacing(folder / WEIGHTS))
        try:
            save_file(_weights(model), weights, metadata={"plan": plan.hash})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        document = {**report, "weights_sha256": checksum(weights)}
        for name, text in ((PLAN, f"{plan.to_json()}\n"), (REPORT, _text(document))):
            drafts.enter_context(replacing(folder / name)).write_text(text, encoding="utf-8", newline="\n")
    return document


def _check_fits(model: nn.Module, saved: Saved) -> None:
    """Raises :class:`SaveError` unless ``model`` has the tensors of the folder's weights."""
    path = saved.folder / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # it cannot be iterated over
    except SafetensorError as error:
        raise LoadError(f"{str(path)!r} is not a complete safetensors file: {error}.") from None
    own = {name: tuple(tensor.shape) for name, tensor in _weights(model).items()}
    names = dict.fromkeys([*stored, *own])
    different = [name for name in names if stored.get(name) != own.get(name)]
    if different:
        name = different[0]
        shapes = [list(each[name]) if name in each else "absent" for each in (own, stored)]
        raise SaveError(
            f"the model's {name!r} is {shapes[0]}, in {str(path)!r} it is {shapes[1]}. Pass the model that "
            f"load({str(saved.folder)!r}, ...) returned. Nothing was written."
        )


def _text(document: Mapping[str, Any]) -> str:
    return f"{document_text(document)}\n"
