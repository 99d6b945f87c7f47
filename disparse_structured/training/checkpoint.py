"""A run's checkpoint: one file, replaced atomically and read without executing code from it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from disparse_structured.errors import LoadError
from disparse_structured.files import made_folder, replacing
from disparse_structured.naming import rule_name
from disparse_structured.tasks import Task
from disparse_structured.training.config import TrainingConfig

FORMAT = 1


class Checkpoint:
    """The file at ``path``, which belongs to the run that ``identity`` describes."""

    def __init__(self, path: str | Path, identity: Mapping[str, str]) -> None:
        self._path = Path(path)
        self._identity = dict(identity)
        self._readable = False

    def read(self) -> dict[str, Any] | None:
        """The content written last, on the CPU; None if there is no file.

        Raises:
            LoadError: the file is not a checkpoint, or belongs to another run, whose difference is named.
        """
        if not self._path.exists():
            return None
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
            form, theirs, content = found["format"], dict(found["identity"]), dict(found["content"])
        except Exception as error:  # pickle, zip, struct and the file system share no base class
            raise LoadError(
                f"{self._path} is not a checkpoint of a training run ({type(error).__name__}). "
                "Remove it, or name another file."
            ) from error
        if form != FORMAT:
            raise LoadError(
                f"{self._path} has format {form}, but this version reads {FORMAT}. Remove the file."
            )
        for key in [*self._identity, *theirs]:
            ours, its = self._identity.get(key, "absent"), theirs.get(key, "absent")
            if ours != its:
                raise LoadError(
                    f"{self._path} belongs to another run: {key} is {its} there and {ours} here. "
                    "Use that run's settings, remove the file, or name another one."
                )
        return content

    def write(self, content: Mapping[str, Any]) -> None:
        """Replaces the file atomically by one with ``content``.

        Raises:
            TypeError: ``content`` cannot be read back without executing code.
            SaveError: the file cannot be written.
        """
        made_folder(self._path.parent)
        with replacing(self._path) as draft:
            with draft.open("wb") as file:
                torch.save({"format": FORMAT, "identity": self._identity, "content": dict(content)}, file)
                file.flush()
                os.fsync(file.fileno())
            if not self._readable:
                _check_readable(draft)
                self._readable = True


def identity(
    config: TrainingConfig,
    tasks: Sequence[Task],
    model: nn.Module,
    batches: int,
    validated: bool,
    with_callback: bool,
) -> dict[str, str]:
    """The settings that a run must share with a checkpoint to resume from it: by name, as text."""
    facts: dict[str, object] = {
        name: getattr(config, name)
        for name in ("epochs", "lr", "weight_decay", "precision", "patience", "seed")
    }
    own = {name: getattr(config, name) for name in ("optimizer", "schedule")}
    facts |= {name: "the default" if made is None else rule_name(made) for name, made in own.items()}
    facts["tasks"] = [(task.name, task.weight, task.loss is not None) for task in tasks]
    teacher = config.teacher
    facts["teacher"] = teacher and (teacher.weight, sorted(teacher.losses))
    facts["number of batches"] = batches
    facts["validation"] = validated
    facts["callback"] = with_callback
    for name, parameter in model.named_parameters():
        facts[f"parameter {name}"] = (tuple(parameter.shape), parameter.requires_grad)
    return {name: str(value) for name, value in facts.items()}


def _check_readable(path: Path) -> None:
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        path.unlink()
        raise TypeError(
            "the checkpoint could not be read back: the state_dict() of the callback, the optimizer or the "
            "schedule holds more than tensors, numbers, strings, None, dicts, lists and tuples. "
            f"Change that, or train without checkpoint=. ({error})"
        ) from error
