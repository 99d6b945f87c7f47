"""Train and eval mode of modules, and torch's modes that change what operators compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put ``models`` in eval mode; restore every module's own mode afterward.

    The flags are set one by one, because a user's own ``train()`` may do more, such as merging weights.
    """
    with _mode(False, models):
        yield


@contextmanager
def train_mode(*models: nn.Module) -> Iterator[None]:
    """Put ``models`` in train mode, as :func:`eval_mode` does."""
    with _mode(True, models):
        yield


@contextmanager
def _mode(training: bool, models: Iterable[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def plain_modes() -> Iterator[None]:
    """Leave the caller's autocast and inference mode; return to them afterward.

    >>> with torch.inference_mode():
    ...     with plain_modes():
    ...         torch.ones(1).is_inference()
    False
    """
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # leaving it enables gradients
            stack.enter_context(torch.inference_mode(False))
        for kind in ["cpu", *([] if accelerator is None else [accelerator.type])]:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def ordinary(value: Any) -> Any:
    """Return ``value``, or a copy if it is a tensor made in inference mode, which has no gradient."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Make torch's attention and transformer layers compute operator by operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
