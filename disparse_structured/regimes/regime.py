"""What a regime is."""

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
        model: the network to train. It is the same object from beginning to end.
        structure: of the dense network; plans are in its coordinates.
    """

    model: nn.Module
    structure: Structure

    @abc.abstractmethod
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """To be called after every step of ``optimizer``, in every process of a distributed run."""

    @abc.abstractmethod
    def finish(self) -> PruningResult:
        """The physically smaller network with the weights that :attr:`model` has now, its plan and report.

        Raises:
            VerificationError: it would not be the masked twin.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the weights of :attr:`model`: tensors and plain data."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over :meth:`state_dict` of a regime that was constructed with the same arguments."""
