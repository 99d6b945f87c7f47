"""Integers of a pruned module that still hold a size of the dense one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.provenance import Arithmetic, Attribute, Expression, Real

_LISTED = 20
"""The most that are listed, so that the warning stays readable."""


def stale_numbers(dense: nn.Module, pruned: nn.Module, reals: Iterable[Real] = ()) -> tuple[str, ...]:
    """List unchanged integer attributes that equal a size that shrank, in the module or its children.

    ``forward`` does not read them, or the pruned module would not be verified. Another method may, such as
    one that fuses layers. Torch's own layers are skipped, because their sizes are updated. So is what
    ``forward`` computes a float from, as it is in ``reals``: a scale is that of the dense network.
    """
    scales = {(each.module, each.name) for expression, _ in reals for each in _attributes(expression)}
    before, after = _sizes(dense), _sizes(pruned)
    found = []
    for path, module in dense.named_modules():
        gone = before.get(path, set()) - after.get(path, set())
        if not gone or type(module).__module__.startswith("torch.nn"):
            continue
        now = vars(pruned.get_submodule(path))
        for name, value in vars(module).items():
            if name.startswith("_") or (path, name) in scales:
                continue
            if type(value) is int and value in gone and now.get(name) == value:
                found.append(f"{path}.{name}" if path else name)
    return tuple(found[:_LISTED])


def _attributes(expression: Expression) -> Iterator[Attribute]:
    if isinstance(expression, Attribute):
        yield expression
    elif isinstance(expression, Arithmetic):
        yield from (*_attributes(expression.left), *_attributes(expression.right))


def _sizes(model: nn.Module) -> dict[str, set[int]]:
    """Module name -> the sizes of the tensors of the module and its children."""
    found: dict[str, set[int]] = {}
    for name, tensor in named_tensors(model)[0].items():
        path = name.rpartition(".")[0]
        for each in {path, path.rpartition(".")[0]}:
            found.setdefault(each, set()).update(tensor.shape)
    return found
