"""The interface of all regimes."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from disparse_structured.pipeline import PruningResult
from disparse_structured.structure import Structure


class Regime(abc.ABC):
    """Decides when units are removed while a training loop trains :attr:`model`.

    Attributes:
        model: the network to train; the same object throughout.
        structure: the dense network's structure, whose numbering plans use.
    """

    model: nn.Module
    structure: Structure

    @abc.abstractmethod
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Call this after every step of ``optimizer``, in every process of a distributed run."""

    @abc.abstractmethod
    def finish(self) -> PruningResult:
        """The physically smaller network with the weights that :attr:`model` has now, its plan and report.

        Raises:
            VerificationError: it differs from the masked twin.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights of :attr:`model`: tensors and plain data."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the :meth:`state_dict` of a regime that was constructed with the same arguments."""
