"""Wrappers and formats of models that cannot be pruned as they are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from disparse_structured.checks import check_not_class
from disparse_structured.errors import UnsupportedModelError

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def check_supported(model: nn.Module) -> None:
    """Raise :class:`UnsupportedModelError` for wrappers and formats that cannot be pruned directly."""
    check_not_class("model", model, UnsupportedModelError)
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"the model is a {type(model).__name__}, not a torch.nn.Module. Wrap it in a module."
        )
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else "the model"
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise UnsupportedModelError(
                f"{where} is wrapped in {type(module).__name__}. Use the module inside: its .module."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{where} is a TorchScript module. Use the Python module it was made from."
            )
        if isinstance(module, torch._dynamo.OptimizedModule):
            raise UnsupportedModelError(
                f"{where} was compiled by torch.compile. Use the original module: its ._orig_mod."
            )
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(map(is_lazy, own)):
            raise UnsupportedModelError(
                f"{where} is lazy ({type(module).__name__}) and has no weights yet. Run the model once first."
            )
        if any(tensor.is_meta for tensor in own):
            raise UnsupportedModelError(
                f"{where} is on the meta device and has no weights. Call model.to_empty(device=...) and load "
                "them."
            )
        if any(tensor.is_inference() for tensor in own):
            raise UnsupportedModelError(
                f"{where} was made in torch.inference_mode() and has no gradients. Make the model outside "
                "of it, or pass copy.deepcopy(model), copied outside of it."
            )
        # A FloatFunctional only marks where a float model will be quantized.
        kind = type(module)
        if kind.__module__.startswith(_QUANTIZED) and kind.__name__ != "FloatFunctional":
            raise UnsupportedModelError(
                f"{where} is quantized ({type(module).__name__}). Prune the float model, then quantize."
            )
