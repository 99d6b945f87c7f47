"""One model, its structure and plan, its pruned module and graph; each is made when it is first needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from benchmarks.timm_sweep.cells import BATCH, SEED, WIDTH, Cell
from disparse_structured.adapters.timm import DenseHead, LinearHead, multitask
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.decision.deciding import make_plan
from disparse_structured.decision.plan import Plan
from disparse_structured.decision.rankings import LayerRanking
from disparse_structured.scoring.criteria import Random
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery import Applied
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task

HEADS = {"labels": DenseHead(13), "depth": DenseHead(1), "scene": LinearHead(10)}

FLOOR = 0.1
"""The share of every group that every plan keeps."""


@dataclass(frozen=True)
class Network:
    """A model in eval mode, a batch of images for it, and its tasks."""

    model: nn.Module
    inputs: tuple[Tensor]
    tasks: tuple[Task, ...]


class Subject:
    """The network of one cell, and what is made of it; ``options`` go to ``timm.create_model``."""

    def __init__(self, cell: Cell, **options: Any) -> None:
        self.cell = cell
        self.options = options

    @cached_property
    def network(self) -> Network:
        """The dense network, with random weights."""
        torch.manual_seed(SEED)
        if self.cell.kind == "multitask":
            heads = multitask(self.cell.model, HEADS, image_size=self.cell.image_size, **self.options)
            return Network(heads.eval(), heads.example_inputs(BATCH), heads.tasks())
        config = timm.get_pretrained_cfg(self.cell.model) or PretrainedCfg()
        channels, *size = config.input_size
        size = [self.cell.image_size] * 2 if self.cell.image_size else size
        sized: dict[str, Any] = {"img_size": size} if self.cell.image_size and config.fixed_input_size else {}
        model: nn.Module = timm.create_model(self.cell.model, **sized, **self.options)
        images = torch.randn(BATCH, channels, *size)
        return Network(model.eval(), (images,), (Task("logits", lambda logits: logits),))

    @cached_property
    def structure(self) -> Structure:
        """What can be removed."""
        return analyse(self.network.model, self.network.inputs, self.network.tasks)

    @cached_property
    def plan(self) -> Plan:
        """See :func:`planned`."""
        return planned(self.structure)

    @cached_property
    def operation(self) -> Applied:
        """The pruned module, verified."""
        return apply(self.network.model, self.plan, self.structure)

    @cached_property
    def graph(self) -> Applied:
        """The pruned exported graph, verified; its own plan is free of sizes that ``forward`` fixes."""
        network = self.network
        structure = analyse(network.model, network.inputs, network.tasks, form="graph")
        return apply_graph(network.model, planned(structure), structure)


def planned(structure: Structure) -> Plan:
    """Random units of every group, to the cost of the network at half of every width."""
    scores = torch.rand(structure.units, generator=torch.Generator().manual_seed(SEED))
    budget = Budget(
        parameters=round(structure.cost.parameters.total(half(structure))), floor=FLOOR, round_to=1
    )
    return make_plan(
        structure,
        scores.expand(len(structure.tasks), -1),
        budget,
        ranking=LayerRanking(),
        criterion=Random(),
        seed=SEED,
    )


def half(structure: Structure) -> Tensor:
    """Bool ``[units]``: :data:`WIDTH` of every group, rounded up, and what count constraints add to that."""
    keep = torch.zeros(structure.units, dtype=torch.bool)
    for group in structure.groups:
        stay = group.units if group.name in structure.unclaimed else math.ceil(group.units * WIDTH)
        keep[group.start : group.start + stay] = True
    order = torch.arange(structure.units)
    rules = Budget(parameters=WIDTH, floor=FLOOR, round_to=1)
    return Widths.of(structure.groups, structure.constraints, rules, structure.reach, order).settle(keep)
