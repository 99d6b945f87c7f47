"""Sizes that methods of a module other than ``forward`` compute with.

timm's ``reset_classifier``, for example, creates a layer with ``num_features`` inputs. No graph shows what
such a number counts, so libraries declare it through entry points of the group ``disparse_structured.sizes``.
Each is a function that is called with every module of a model and returns the :class:`SizeDeclaration`
objects of that module. The adapter for timm is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from disparse_structured.errors import ExtensionError
from disparse_structured.graph.provenance import Attribute, Key
from disparse_structured.structure.entry_points import SIZES, described, installed, loaded
from disparse_structured.structure.labels import Axis
from disparse_structured.structure.tracing import SizeLiteral, Trace, is_value

Source = Callable[[nn.Module], Iterable["SizeDeclaration"]]


@dataclass(frozen=True)
class SizeDeclaration:
    """Declares that ``attribute`` of a module is the size of one dimension of what ``counts`` names.

    Both are dotted names, relative to the module that the size is declared for. If an attribute has several
    declarations, the first whose tensor exists and has the attribute's size in that dimension applies. If
    none applies, the attribute is unchanged.

    Args:
        attribute: an integer attribute (``"num_features"``, ``"head.in_features"``), or a container that
            holds the integer; None if a method hard-codes the size, which pins the dimension.
        counts: a parameter or buffer (``"fc.weight"``), or a method, which stands for what it returns
            while the model runs: ``"layer2.forward"`` is the output of ``layer2``.
        dim: the dimension, counted from the end if negative; or a mapping from the tensor's number of
            dimensions to it.
        keys: the path to the integer inside the attribute: indices, keys, and names of attributes.
        leaf: the position of the tensor among those that a method returns.

    >>> from disparse_structured.structure import SizeDeclaration
    >>> def sizes(module):
    ...     if type(module).__name__ == "MyNet":
    ...         yield SizeDeclaration("num_features", "fc.weight", dim=1)
    """

    attribute: str | None
    counts: str
    dim: int | Mapping[int, int] = 0
    keys: tuple[Key, ...] = ()
    leaf: int = 0

    def axis(self, value: tuple[Axis, ...]) -> Axis | None:
        """Return the counted dimension of ``value``, or None if it has no such dimension."""
        dim = self.dim if isinstance(self.dim, int) else self.dim.get(len(value))
        return None if dim is None or not -len(value) <= dim < len(value) else value[dim]


@dataclass(frozen=True)
class _Declared:
    """A number of the model: its attribute, its value, and the path of what it counts."""

    number: SizeDeclaration
    attribute: Attribute | None
    size: int | None
    counts: str
    is_method: bool

    def axis(self, trace: Trace, canonical: Mapping[str, str]) -> Axis | None:
        """Return the dimension it counts; None if that does not exist or has another size."""
        value: Any = None
        if not self.is_method:
            value = trace.tensors.get(canonical.get(self.counts, ""))
        else:
            returned = trace.capture.results.get(self.counts, ())
            annotation = returned[self.number.leaf] if self.number.leaf < len(returned) else None
            value = None if annotation is None else trace.annotated.get(annotation)
        axis = self.number.axis(value) if is_value(value) else None
        return None if axis is None or self.size not in (None, axis.size) else axis


@dataclass(frozen=True)
class Declarations:
    """The sizes declared for the modules of one model."""

    numbers: tuple[_Declared, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Declarations:
        """Collect what the installed entry points declare about ``model``.

        Raises:
            ExtensionError: an entry point cannot be loaded, fails, or returns anything but declarations.
        """
        entries = [(entry, _source(entry)) for entry in installed(SIZES)]
        declared = (
            _declared(model, path, number)
            for path, module in model.named_modules()
            for entry, source in entries
            for number in _declarations_from(entry, source, path, module)
        )
        return cls(tuple(each for each in declared if each is not None))

    @property
    def methods(self) -> frozenset[str]:
        """The methods whose return values must be recorded."""
        return frozenset(each.counts for each in self.numbers if each.is_method)

    def pin(self, trace: Trace, canonical: Mapping[str, str]) -> None:
        """Pin the dimensions that hard-coded numbers count.

        Args:
            canonical: the name that ``trace`` uses for each parameter and buffer.
        """
        for each in self.numbers:
            axis = each.axis(trace, canonical) if each.attribute is None else None
            if axis is not None:
                module, _, name = each.counts.rpartition(".")
                reason = f"a method hard-codes the number {axis.size}"
                trace.labels.pin(axis.atoms(), reason, name, module)

    def literals(self, trace: Trace, canonical: Mapping[str, str]) -> Iterator[SizeLiteral]:
        """Yield a literal for every attribute whose counted dimension is known.

        Args:
            canonical: the name that ``trace`` uses for each parameter and buffer.
        """
        known: set[Attribute] = set()
        for each in self.numbers:
            attribute = each.attribute
            axis = each.axis(trace, canonical)
            if attribute is not None and axis is not None and attribute not in known:
                known.add(attribute)
                yield SizeLiteral(attribute, axis.atoms(), each.counts, attribute.module)


def _declared(model: nn.Module, path: str, number: SizeDeclaration) -> _Declared | None:
    """None if ``model`` lacks the attribute or what it counts."""
    attribute, size = None, None
    counts = _joined(path, number.counts)
    try:
        counted = attrgetter(counts)(model)
        if number.attribute is not None:
            owner, _, name = _joined(path, number.attribute).rpartition(".")
            attribute = Attribute(owner, name, number.keys)
            size = attribute.read(model)
    except (AttributeError, LookupError, TypeError):
        return None
    is_method = callable(counted) and not isinstance(counted, torch.Tensor)
    if not (is_method or isinstance(counted, torch.Tensor)) or type(size) not in (int, type(None)):
        return None
    return _Declared(number, attribute, size, counts, is_method)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _source(entry: metadata.EntryPoint) -> Source:
    source: Source = loaded(entry)
    if not callable(source):
        raise ExtensionError(
            f"{described(entry)} is of type {type(source).__name__}. Point it at a function that takes a "
            "module and returns the SizeDeclaration objects of that module."
        )
    return source


def _declarations_from(
    entry: metadata.EntryPoint, source: Source, path: str, module: nn.Module
) -> list[SizeDeclaration]:
    where = f"for module {path!r} ({type(module).__name__})"
    try:
        numbers = list(source(module))
    except Exception as error:  # code of another package may raise anything
        raise ExtensionError(
            f"{described(entry)} fails {where}: {type(error).__name__}: {error}. Repair or uninstall the "
            "package that registers it."
        ) from error
    for number in numbers:
        if not isinstance(number, SizeDeclaration):
            raise ExtensionError(
                f"{described(entry)} returns {number!r} {where}. Let it return "
                "disparse_structured.structure.SizeDeclaration objects."
            )
    return numbers
