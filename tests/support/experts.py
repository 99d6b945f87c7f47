"""Mixtures of experts that send rows by value, so that how many rows an expert reads depends on the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

WIDTH, EXPERTS = 12, 3

Route = Callable[["Routed", Tensor], Tensor]


class Routed(nn.Module):
    """Two heads on tokens ``[batch, 8, 6]``; ``route`` sends rows to experts of two layers."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH)) for _ in range(EXPERTS)
        )
        self.near = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 3))
        self.far = nn.Linear(WIDTH, 2)
        self.route = route

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        x = x + self.route(self, x.reshape(-1, WIDTH)).view_as(x)
        return {"near": self.near(x), "far": self.far(x)}


class RoutedImages(nn.Module):
    """Whole images ``[batch, 3, 8, 8]`` go to one of three experts of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))
            for _ in range(3)
        )
        self.near = nn.Sequential(nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Conv2d(10, 2, 1))
        self.far = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        chosen, found = self.gate(x.mean((2, 3))).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == number)
            found = found.index_add(0, rows, expert(x[rows]))
        x = x + found
        return {"near": self.near(x), "far": self.far(x)}


def best_two(net: Routed, x: Tensor) -> Tensor:
    weights, chosen = net.gate(x).softmax(-1).topk(2, -1)
    found = torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        rows, ranks = torch.where(chosen == number)
        found.index_add_(0, rows, expert(x[rows]) * weights[rows, ranks, None])
    return found


def one_without_rows(net: Routed, x: Tensor) -> Tensor:
    """The last expert never gets a row."""
    chosen, found = net.gate(x)[:, :-1].argmax(-1), torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        (rows,) = torch.where(chosen == number)
        found.index_add_(0, rows, expert(x[rows]))
    return found


def nonzero(net: Routed, x: Tensor) -> Tensor:
    chosen, found = net.gate(x).argmax(-1), torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        rows = (chosen == number).nonzero()[:, 0]
        found = found.index_add(0, rows, expert(x[rows]))
    return found


def above_a_threshold(net: Routed, x: Tensor) -> Tensor:
    """The number of rows in all differs between networks."""
    chosen, found = net.gate(x) > 0, torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        found[chosen[:, number]] += expert(x[chosen[:, number]])
    return found


def masked_select(net: Routed, x: Tensor) -> Tensor:
    chosen, found = net.gate(x).argmax(-1), torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        mine = (chosen == number)[:, None].expand_as(x)
        rows = torch.masked_select(x, mine).view(-1, WIDTH)
        found = found.masked_scatter(mine, expert(rows))
    return found


def shared(net: Routed, x: Tensor) -> Tensor:
    """One expert reads the chosen rows, and then all rows."""
    (rows,) = torch.where(net.gate(x)[:, 0] > 0)
    expert = net.experts[0]
    return expert(x).index_add(0, rows, expert(x[rows]))


ROUTES: Mapping[str, Route] = {
    route.__name__: route
    for route in (best_two, one_without_rows, nonzero, above_a_threshold, masked_select, shared)
}
NAMES = (*ROUTES, "images")


def routed(name: str) -> tuple[nn.Module, Tensor]:
    """The network of ``name``, in eval mode, and 24 examples; the global seed is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RoutedImages() if name == "images" else Routed(ROUTES[name])
        return model.eval(), torch.randn(24, 3, 8, 8) if name == "images" else torch.randn(24, 8, 6)
