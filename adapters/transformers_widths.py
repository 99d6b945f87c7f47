"""The widths of a module as plain data: shapes of tensors and numbers of modules, to compare and restore.

Nothing here imports transformers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from disparse_structured.errors import LoadError, UnsupportedModelError

Number: TypeAlias = int | float | tuple[int | float, ...] | list[int | float]
Key: TypeAlias = tuple[str, str]
"""The name of a module, and of one of its attributes."""


@dataclass(frozen=True)
class Widths:
    """What pruning can change in a module.

    Args:
        shapes: of parameters and persistent buffers, by every name that they have.
        unsaved: shapes of tensors that no state dict holds: other buffers, and plain attributes.
        numbers: the integers and floats of modules, and tuples and lists of them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    unsaved: Mapping[str, tuple[int, ...]]
    numbers: Mapping[Key, Number]

    @classmethod
    def of(cls, model: nn.Module) -> Widths:
        """Measure ``model``, which may be on the meta device."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        unsaved = {
            name: tuple(tensor.shape)
            for name, tensor in model.named_buffers(remove_duplicate=False)
            if name not in shapes
        }
        numbers: dict[Key, Number] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor):
                    unsaved[f"{path}.{name}"] = tuple(value.shape)
                elif _is_number(value):
                    numbers[path, name] = value
        return cls(shapes, unsaved, numbers)

    def differences(self, other: Widths, but: Container[Key] = ()) -> Iterator[tuple[Any, Any]]:
        """The pairs of shapes and of numbers that differ; those ``but``, or in only one, do not count."""
        for mine, theirs in ((self.shapes, other.shapes), (self.unsaved, other.unsaved)):
            for name in mine.keys() & theirs.keys():
                if mine[name] != theirs[name]:
                    yield mine[name], theirs[name]
        for key in self.numbers.keys() & other.numbers.keys():
            if key not in but and self.numbers[key] != other.numbers[key]:
                yield self.numbers[key], other.numbers[key]

    def unchanged_integers(self, other: Widths) -> frozenset[Key]:
        """The integers that both have in common. In a pruned model, ``forward`` may not read them."""
        return frozenset(
            key
            for key, value in self.numbers.items()
            if type(value) is int and other.numbers.get(key) == value
        )


def record(dense: Widths, pruned: Widths, kind: str) -> dict[str, Any]:
    """What turns a module with the widths ``dense`` into one with the widths ``pruned``, as JSON.

    Raises:
        UnsupportedModelError: the two do not have the same tensors, or a tensor differs that is not saved.
    """
    odd = sorted(dense.shapes.keys() ^ pruned.shapes.keys())
    if odd:
        raise UnsupportedModelError(
            f"{kind} and the model that its config builds do not have the same tensors: {odd[0]!r} is in one "
            "of them only. Save such a model with result.save(folder)."
        )
    for name in dense.unsaved.keys() & pruned.unsaved.keys():
        if dense.unsaved[name] != pruned.unsaved[name]:
            raise UnsupportedModelError(
                f"{name!r} of {kind} was pruned, but a transformers folder does not hold it. Save such a "
                "model with result.save(folder)."
            )
    numbers: dict[str, dict[str, Any]] = {}
    for (path, name), value in sorted(pruned.numbers.items()):
        if dense.numbers.get((path, name), value) != value:
            numbers.setdefault(path, {})[name] = value
    shapes = {
        name: list(shape) for name, shape in sorted(pruned.shapes.items()) if dense.shapes[name] != shape
    }
    return {"shapes": shapes, "numbers": numbers}


def restore(model: nn.Module, recorded: Mapping[str, Any]) -> None:
    """Give ``model``, a dense one, the widths of ``recorded``; the new tensors are uninitialized.

    Raises:
        LoadError: the record names something that ``model`` does not have.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    resized: dict[int, torch.Tensor] = {}
    for name, shape in recorded["shapes"].items():
        path, _, leaf = name.rpartition(".")
        old = getattr(modules.get(path), leaf, None)
        if not isinstance(old, torch.Tensor):
            raise LoadError(_unknown(name, model))
        new = resized.setdefault(id(old), _resized(old, shape))
        setattr(modules[path], leaf, new)
    for path, numbers in recorded["numbers"].items():
        for name, value in numbers.items():
            if not hasattr(modules.get(path), name):
                raise LoadError(_unknown(f"{path}.{name}", model))
            kind = type(getattr(modules[path], name))
            setattr(modules[path], name, kind(value) if isinstance(value, list) else value)


def _resized(old: torch.Tensor, shape: list[int]) -> torch.Tensor:
    new = old.new_empty(shape)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _unknown(name: str, model: nn.Module) -> str:
    return (
        f"the record in config.json names {name!r}, which {type(model).__name__} does not have. The folder "
        "was probably written with another version of transformers; use that one, or save the model again."
    )


def _is_number(value: object) -> bool:
    items = value if isinstance(value, tuple | list) and type(value) in (tuple, list) else [value]
    return bool(items) and all(type(each) in (int, float) for each in items)
