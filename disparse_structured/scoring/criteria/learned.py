"""Learned importance: gates trained for each task under a growing sparsity pressure."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from disparse_structured.checks import check_counts, check_positive
from disparse_structured.errors import GradientError
from disparse_structured.scoring.batch_losses import BatchLosses
from disparse_structured.scoring.probe import Probe
from disparse_structured.structure import Structure

_START = 1e-3
"""The first pressure, as a fraction of the last."""

_THRESHOLD = -4.0
"""Initial thresholds before the sigmoid, which makes them 0.018: gates nearly open."""


@dataclass(frozen=True)
class Learned:
    """How long a task's own gate stays open while a sparsity pressure grows: its mean over training.

    Each task k has a gate ``g = relu(z - sigmoid(s))`` on every unit, open (1) at first. Each unit has its
    own ``z``; the threshold ``s`` is shared by a component: all units that the same tasks reach (the
    shared trunk, each head). With the network's weights frozen, Adam minimizes ::

        loss_k(g) / |loss_k(all closed) - loss_k(as it is)|  +  pressure * mean(g)

    over the gates that the task reaches. The pressure rises geometrically to ``pressure`` over the
    steps, so that units close in the order of their worth to the task. At pressure 1, closing
    everything costs as much as it gains.

    Soft thresholds learned per component are AdapMTL's (Xiang et al., "AdapMTL: adaptive pruning framework
    for multitask learning model", ACM MM 2024). There, they act on weights, which are trained along with
    them, and all tasks share one threshold. Here, they act on gates of units, for each task separately,
    and the weights are frozen. The path of growing pressure is that of the lasso (Tibshirani, 1996).

    The loss of a label-free task is the squared distance of its output from the current one, relative to
    its squared norm.

    Args:
        steps: mini-batches in all, however many the data has. It is read as often as needed, so it must
            be a loader or a list if it has fewer. Each is one forward and one backward pass per task.
        lr: Adam's learning rate; a gate under pressure alone closes in about 1 / lr steps.
        pressure: the final pressure, see above.
    """

    steps: int = 200
    lr: float = 0.05
    pressure: float = 10.0

    def __post_init__(self) -> None:
        check_counts(steps=self.steps)
        check_positive(lr=self.lr, pressure=self.pressure)

    def __call__(self, probe: Probe) -> torch.Tensor:
        """float64 ``[tasks, units]``; units that are off (``probe.keep``) stay off and have 0."""
        on = torch.ones(probe.structure.units, dtype=torch.bool) if probe.keep is None else probe.keep.cpu()
        growth = _START ** (-1 / max(self.steps - 1, 1))
        pressures = [self.pressure * _START * growth**step for step in range(self.steps)]
        learners: list[_Learner] = []
        for losses, pressure in zip(probe.losses(self.steps), pressures, strict=True):
            if not learners:
                rows = range(len(probe.structure.tasks))
                learners = [_Learner(row, probe.structure, on, self.lr, losses) for row in rows]
            for learner in learners:
                learner.step(losses, pressure)
        return torch.stack([learner.total.cpu().double() for learner in learners]) / self.steps


class _Learner:
    """The gates of one task while they are trained, float32 on ``device``.

    ``total`` ``[units]`` is the sum of the gates over the steps, 0 where the task reaches no unit that is on.
    """

    def __init__(
        self, row: int, structure: Structure, on: torch.Tensor, lr: float, first: BatchLosses
    ) -> None:
        device = first.open.device
        components = torch.unique(structure.reach.T.int(), dim=0, return_inverse=True)[1]
        self.row = row
        self.name = structure.tasks[row]
        self.component = components.to(device)
        self.on = on.to(device)
        self.trained = (structure.reach[row] & on).to(device)
        self.count = max(int(self.trained.sum()), 1)
        self.thresholds = torch.full((int(components.max()) + 1,), _THRESHOLD, device=device)
        self.heights = 1 + self._thresholds()
        self.total = torch.zeros(structure.units, device=device)
        self.optimizer = torch.optim.Adam(
            [self.heights.requires_grad_(), self.thresholds.requires_grad_()], lr=lr
        )
        self.scale = self._closing_cost(first)

    def step(self, losses: BatchLosses, pressure: float) -> None:
        """One step of Adam on one batch."""
        gates = self._gates()
        loss = losses.of(self.row, gates) / self.scale + pressure * gates[self.trained].sum() / self.count
        leaves = (self.heights, self.thresholds)
        gradients = torch.autograd.grad(loss, leaves)
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise GradientError(
                f"task {self.name!r}: the gate gradient of its loss is NaN or infinite while gates "
                "close. Look for a square root, logarithm or division at 0 in the loss or the network, or "
                "use Fisher(), which leaves the gates open."
            )
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            # Gates only close: a gate that amplified would score above one that is merely needed.
            self.heights.copy_(torch.minimum(self.heights, 1 + self._thresholds()))
            self.total += self._gates() * self.trained

    def _gates(self) -> torch.Tensor:
        """``[units]``; gates of units that the task does not reach are not trained and do not matter."""
        return torch.relu(self.heights - self._thresholds()) * self.on

    def _thresholds(self) -> torch.Tensor:
        return self.thresholds.sigmoid()[self.component]

    def _closing_cost(self, losses: BatchLosses) -> torch.Tensor:
        """The cost of closing all gates, by which losses are divided so that their scale is irrelevant."""
        gates = self._gates()
        dense = losses.of(self.row, gates).detach()
        closed = losses.of(self.row, gates * ~self.trained).detach()
        # An untrained network's loss may not change at all.
        least = torch.maximum(dense.abs() * 1e-3, torch.full_like(dense, torch.finfo(dense.dtype).tiny))
        return torch.maximum((closed - dense).abs(), least)
