"""Modules that a network holds but never runs, such as the last stages of an encoder that is read halfway."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from disparse_structured.graph.named_tensors import named_tensors


@dataclass(frozen=True)
class UnusedModule:
    """A module none of whose tensors ``forward`` reads, in eval or train mode.

    ``parameters`` is the number of its elements, ``share`` their share of the model's; those that it shares
    with another unused module count once. In the report of a pruned network, those that read a width which
    was pruned are ``unfit``, see :mod:`disparse_structured.surgery.unfit`.
    """

    module: str
    parameters: int
    share: float
    unfit: bool = False


def unused_modules(model: nn.Module, used: Collection[str]) -> tuple[UnusedModule, ...]:
    """List the outermost modules with parameters and no tensor in ``used``, which holds canonical names."""
    _, canonical = named_tensors(model)
    read = {name for name, owner in canonical.items() if owner in used}
    total = sum(parameter.numel() for parameter in model.parameters())

    seen: set[nn.Module] = set()
    counted: set[nn.Parameter] = set()

    def inside(path: str, module: nn.Module) -> Iterator[UnusedModule]:
        for name, child in module.named_children():
            own = f"{path}{name}"
            if child in seen or next(child.parameters(), None) is None:
                continue
            seen.add(child)
            if any(each.startswith(f"{own}.") for each in read):
                yield from inside(f"{own}.", child)
            else:
                seen.update(child.modules())
                new = set(child.parameters()) - counted
                counted.update(new)
                parameters = sum(parameter.numel() for parameter in new)
                yield UnusedModule(own, parameters, parameters / total)

    return tuple(inside("", model))
