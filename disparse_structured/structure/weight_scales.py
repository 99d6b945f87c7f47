"""Weights that a layer computes by rescaling a parameter: what remains of them keeps its value.

Weight normalization (arXiv:1602.07868) is ``w = g * v / |v|`` with a norm over the inputs of each output;
spectral normalization (arXiv:1802.05957) is ``w / sigma`` with ``sigma = left @ w @ right``. Both would scale
up a pruned weight, because its norm is smaller. So the magnitude ``g`` or the vector ``left`` is rescaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Tensors = Mapping[str, torch.Tensor]


class WeightScale(Protocol):
    """A scale that depends on a whole weight; tensors have canonical names."""

    @property
    def weight(self) -> str:
        """The name of the weight."""

    @property
    def dim(self) -> int:
        """The weight's dimension that can shrink without changing the scale of the rest; -1 if none."""

    @property
    def rescaled(self) -> str:
        """The name of the tensor that is rescaled."""

    def measure(self, tensors: Tensors) -> torch.Tensor:
        """Return the scale; store it where a cut shrinks it together with the weight."""

    def restore(self, tensors: Tensors, scale: torch.Tensor) -> None:
        """Restore the ``scale`` returned by :meth:`measure` for what is left of the weight in ``tensors``."""


@dataclass(frozen=True)
class WeightNorm:
    """``weight`` is ``v``; ``magnitude`` is ``g``, of size 1 in every dimension but ``dim``."""

    weight: str
    magnitude: str
    dim: int

    @property
    def rescaled(self) -> str:
        """The magnitude."""
        return self.magnitude

    def measure(self, tensors: Tensors) -> torch.Tensor:
        """Replace ``g`` by ``g / |v|`` and return it."""
        magnitude = tensors[self.magnitude]
        magnitude.data = magnitude.detach() / self._norm(tensors)
        return magnitude.detach()

    def restore(self, tensors: Tensors, scale: torch.Tensor) -> None:
        """Multiply what is left of ``g`` by the new ``|v|``."""
        magnitude = tensors[self.magnitude]
        magnitude.data = magnitude.detach() * self._norm(tensors)

    def _norm(self, tensors: Tensors) -> torch.Tensor:
        return torch.norm_except_dim(tensors[self.weight].detach(), 2, self.dim)


@dataclass(frozen=True)
class SpectralNorm:
    """``left`` has the size of dimension ``axis`` of ``weight``, ``right`` that of all others together."""

    weight: str
    left: str
    right: str
    axis: int
    dim: int = -1

    @property
    def rescaled(self) -> str:
        """The vector ``left``."""
        return self.left

    def measure(self, tensors: Tensors) -> torch.Tensor:
        """Return ``sigma``."""
        matrix = tensors[self.weight].detach().movedim(self.axis, 0).flatten(1)
        return tensors[self.left].detach() @ (matrix @ tensors[self.right].detach())

    def restore(self, tensors: Tensors, scale: torch.Tensor) -> None:
        """Multiply ``left`` by the factor that ``sigma`` lost."""
        left = tensors[self.left]
        left.data = left.detach() * (scale / self.measure(tensors))
