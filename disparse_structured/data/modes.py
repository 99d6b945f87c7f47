"""Train and eval mode of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
def without_fast_path() -> Iterator[None]:
    """Make torch's attention and transformer layers compute operator by operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
