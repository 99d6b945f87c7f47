"""Which configuration of transformers builds given widths, found by trying."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree
from transformers import PreTrainedConfig, PreTrainedModel

from disparse_structured.adapters.transformers_widths import Widths
from disparse_structured.data.call import call
from disparse_structured.data.differences import close
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.capture import clone_if_tensor, tensor_leaves
from disparse_structured.graph.side_effects import undone

_Path: TypeAlias = tuple[str | int, ...]
_Changes: TypeAlias = Mapping[_Path, int]

_TRIES = 150
"""Most configurations that are tried."""

_TOLERANCE = 1e-2
"""Largest difference of outputs: rounding, not other heads."""

_SIZES = re.compile("size|dim|inner|heads|width|channels|features")
"""Names of fields that count something, where their value (None, or no value) does not say so."""


def fitted(model: PreTrainedModel, inputs: tuple[Any, ...] | None = None) -> PreTrainedConfig | None:
    """A configuration of the same class that builds ``model``; None if none was found.

    Fields are changed as the widths were, one at a time, as long as more tensors and numbers of the
    model that the configuration builds are those of ``model``. Only a configuration that builds all of them
    is returned, so what is read from a configuration and seen in no tensor, such as the number of heads of a
    fused projection, is right as well.

    An integer that pruning left as it was may be one that ``forward`` does not read. With ``inputs``, the
    arguments of one forward pass, such integers may differ, and the outputs are compared.
    """
    search = _Search(model, lenient=inputs is not None)
    for start in ({}, search.explicit()):
        changes = search.from_(start)
        if changes is not None:
            config = search.config(changes)
            return config if inputs is None or _computes(config, model, inputs) else None
    return None


def _computes(config: PreTrainedConfig, model: PreTrainedModel, inputs: tuple[Any, ...]) -> bool:
    """Whether the model of ``config`` with the weights of ``model`` computes the same."""
    with Isolation(0, model.device):
        other: Any = type(model)(copy.deepcopy(config))
        other.to(device=model.device, dtype=model.dtype)
    other.load_state_dict(model.state_dict())
    mine, wanted = (_outputs(each, inputs) for each in (other, model))
    return close(mine, wanted, _TOLERANCE)


def _outputs(model: PreTrainedModel, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    with undone(model), eval_mode(model), torch.no_grad(), Isolation(0, model.device):
        return tensor_leaves(call(model, pytree.tree_map(clone_if_tensor, inputs)))


def built(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model that ``config`` builds, without memory for its tensors."""
    with torch.device("meta"), Isolation(0, torch.device("cpu")):
        return kind(copy.deepcopy(config))


class _Search:
    """The model whose widths are wanted, and what was tried so far."""

    def __init__(self, model: PreTrainedModel, lenient: bool) -> None:
        self._kind, self._given, self._wanted = type(model), model.config, Widths.of(model)
        self._dense = Widths.of(built(self._kind, self._given))
        self._unread = self._wanted.unchanged_integers(self._dense) if lenient else frozenset()
        self._tried: dict[frozenset[tuple[_Path, int]], list[tuple[Any, Any]] | None] = {}

    def config(self, changes: _Changes) -> PreTrainedConfig:
        document = self._given.to_dict()
        for path, value in changes.items():
            *owners, name = path
            owner: Any = document
            for each in owners:
                owner = owner[each]
            owner[name] = value
        return type(self._given).from_dict(document)

    def explicit(self) -> dict[_Path, int]:
        """Fields without a value, with the number that modules of the dense model have under their name.

        A head dimension, for example, then stays when the hidden width changes.
        """
        named: dict[str, set[Any]] = defaultdict(set)
        for (_, name), each in self._dense.numbers.items():
            named[name].add(each if type(each) is int else None)
        missing = [path for path, value in _fields(self._given.to_dict(), ()) if value is None]
        single = {name: numbers.pop() for name, numbers in named.items() if len(numbers) == 1}
        return {path: number for path in missing if (number := single.get(str(path[-1]))) is not None}

    def from_(self, start: _Changes) -> dict[_Path, int] | None:
        """``start`` and changes of other fields that build the model; None if there are none."""
        changes = dict(start)
        left = self.off(changes)
        while left:
            proposed = [(path, value) for path, value in self.proposed(changes) if path not in start]
            better = self.best(changes, proposed, left)
            if better is None:
                return None
            left, changes = better
        return None if left is None else changes

    def off(self, changes: _Changes) -> int | None:
        """How many tensors and numbers ``changes`` get wrong; None if nothing can be built."""
        found = self._differences(changes)
        return None if found is None else len(found)

    def best(
        self, changes: _Changes, candidates: Iterable[tuple[_Path, int]], left: int
    ) -> tuple[int, dict[_Path, int]] | None:
        """The first of those candidates that leave least, if that is less than ``left``."""
        best: tuple[int, dict[_Path, int]] | None = None
        for path, value in candidates:
            trial = {**changes, path: value}
            off = self.off(trial)
            if off is not None and off < (left if best is None else best[0]):
                best = off, trial
        return best

    def proposed(self, changes: _Changes) -> Iterator[tuple[_Path, int]]:
        """Fields with the values that they would have if they had changed as some width did."""
        ratios: set[Any] = set()
        for before, after in self._differences(changes) or ():
            pairs = (
                zip(before, after, strict=False) if isinstance(before, tuple | list) else ((before, after),)
            )
            ratios.update(
                (old, new)
                for old, new in pairs
                if type(old) is int and type(new) is int and old != new and min(old, new) > 0
            )
        proposed = dict.fromkeys(
            (path, new if value is None else value * new // old)
            for path, value in _fields(self.config(changes).to_dict(), ())
            for old, new in sorted(ratios)
            if value is None or (old % value == 0 and value * new % old == 0)
        )
        yield from proposed

    def _differences(self, changes: _Changes) -> list[tuple[Any, Any]] | None:
        key = frozenset(changes.items())
        if key not in self._tried:
            if len(self._tried) >= _TRIES:
                return None
            try:
                found = Widths.of(built(self._kind, self.config(changes)))
            except Exception:  # whatever they raise about sizes that do not go together
                self._tried[key] = None
            else:
                self._tried[key] = list(found.differences(self._wanted, self._unread))
                if found.shapes.keys() != self._wanted.shapes.keys():
                    self._tried[key] = None
        return self._tried[key]


def _fields(document: Mapping[str, Any], path: _Path) -> Iterator[tuple[_Path, int | None]]:
    """The integers of a configuration and of those inside it, and what may be one."""
    for name, value in document.items():
        if type(value) is int and value > 1:
            yield (*path, name), value
        elif isinstance(value, list):
            for place, each in enumerate(value):
                if type(each) is int and each > 1:
                    yield (*path, name, place), each
        elif isinstance(value, Mapping) and "model_type" in value:
            yield from _fields(value, (*path, name))
        elif value is None and _SIZES.search(name):
            yield (*path, name), None
    if "head_dim" not in document and any("heads" in name for name in document):
        yield (*path, "head_dim"), None
