"""Integers of a pruned module that still hold a size of the dense one."""

from __future__ import annotations

from torch import nn

from disparse_structured.graph.named_tensors import named_tensors

_LISTED = 20
"""The most that are listed, so that the warning stays readable."""


def stale_numbers(dense: nn.Module, pruned: nn.Module) -> tuple[str, ...]:
    """List unchanged integer attributes that equal a size that shrank, in the module or its children.

    ``forward`` does not read them, or the pruned module would not be verified. Another method may, such as
    one that fuses layers. Torch's own layers are skipped, because their sizes are updated.
    """
    before, after = _sizes(dense), _sizes(pruned)
    found = []
    for path, module in dense.named_modules():
        gone = before.get(path, set()) - after.get(path, set())
        if not gone or type(module).__module__.startswith("torch.nn"):
            continue
        now = vars(pruned.get_submodule(path))
        for name, value in vars(module).items():
            if type(value) is int and value in gone and now.get(name) == value and not name.startswith("_"):
                found.append(f"{path}.{name}" if path else name)
    return tuple(found[:_LISTED])


def _sizes(model: nn.Module) -> dict[str, set[int]]:
    """Module name -> the sizes of the tensors of the module and its children."""
    found: dict[str, set[int]] = {}
    for name, tensor in named_tensors(model)[0].items():
        path = name.rpartition(".")[0]
        for each in {path, path.rpartition(".")[0]}:
            found.setdefault(each, set()).update(tensor.shape)
    return found
