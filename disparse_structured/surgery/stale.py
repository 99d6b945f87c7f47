"""Integers of a pruned module that still say what was true of the dense one."""

from __future__ import annotations

from torch import nn

from disparse_structured.graph.named_tensors import named_tensors

_LISTED = 20
"""At most so many are listed: a warning is to be read."""


def stale_numbers(dense: nn.Module, pruned: nn.Module) -> tuple[str, ...]:
    """List integer attributes that equal a size that shrank, in the module or right below, and did not
    change.

    ``forward`` does not read them, or the pruned module would not be verified. Another method may, such as
    one that fuses layers. Torch's own layers are told their sizes.
    """
    before, after = _sizes(dense), _sizes(pruned)
    found = []
    for path, module in dense.named_modules():
        gone = before.get(path, set()) - after.get(path, set())
        now = vars(pruned.get_submodule(path)) if gone else {}
        if type(module).__module__.startswith("torch.nn"):
            continue
        for name, value in vars(module).items() if gone else ():
            if type(value) is int and value in gone and now.get(name) == value and not name.startswith("_"):
                found.append(f"{path}.{name}" if path else name)
    return tuple(found[:_LISTED])


def _sizes(model: nn.Module) -> dict[str, set[int]]:
    """The sizes of the tensors of each module and of the modules right below it, by the module's name."""
    found: dict[str, set[int]] = {}
    for name, tensor in named_tensors(model)[0].items():
        path = name.rpartition(".")[0]
        for each in {path, path.rpartition(".")[0]}:
            found.setdefault(each, set()).update(tensor.shape)
    return found
