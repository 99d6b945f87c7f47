"""The pruned module is the masked twin: on every network of the zoo, and on timm's families.

The twin is the specification of "removed". Because it and the pruner read the same labels, a second
witness needs none of them: where nothing is averaged over channels, setting the removed parameters to
zero in the dense module must give what removing them gives.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.adapters.timm import ASPPHead, DenseHead, LinearHead, multitask
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import decide
from disparse_structured.errors import BudgetError
from disparse_structured.export import export_onnx
from disparse_structured.scoring import score
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import Structure
from disparse_structured.surgery.module import cut
from disparse_structured.verification.twin import masked_twin
from tests.support.plans import Case, case, deviation, random_keep, zeroed
from tests.support.zoo import BY_ID, ids, randomize_norms


def voted_keep(animal: Case, seed: int) -> Tensor:
    """What the tasks' own votes keep, label-free, of the smallest budget in the list that can be met."""
    saliency = score(animal.model, animal.structure, [animal.inputs], Fisher(), to_inputs=tuple, seed=seed)
    for share in (0.45, 0.7, 0.95):
        try:
            return decide(animal.structure, saliency.scores, Budget(parameters=share)).keep
        except BudgetError:
            continue
    raise AssertionError("no budget can be met")


PLANS: dict[str, Callable[[Case, int], Tensor]] = {
    "random": lambda animal, seed: random_keep(animal.structure, seed),
    "voted": voted_keep,
}
"""Kinds of plans: a dense network and a seed to the units that stay."""

EXACT = 1e-9
FLOAT32 = 1e-4


# The zoo.


@pytest.mark.parametrize("plan_kind", PLANS)
@pytest.mark.parametrize("id", ids)
def test_twin_is_the_pruned_module(id: str, plan_kind: str) -> None:
    animal = case(id)
    dense = animal.outputs(animal.model)
    changed = plan_kind == "voted"  # votes may find units whose removal changes nothing
    for seed in range(4 if plan_kind == "random" else 1):
        keep = PLANS[plan_kind](animal, seed)
        twin = animal.twin(keep)

        assert deviation(animal.outputs(animal.pruned(keep)), twin) <= EXACT
        changed |= deviation(twin, dense) > 1e-3
    assert changed, "no plan changed the outputs: their equality would mean nothing"


@pytest.mark.parametrize("id", ids)
def test_twin_with_nothing_removed_is_the_dense_network(id: str) -> None:
    animal = case(id)
    everything = torch.ones(animal.structure.units, dtype=torch.bool)

    assert deviation(animal.outputs(animal.model), animal.twin(everything)) <= EXACT


@pytest.mark.parametrize("id", ids)
def test_twin_on_batches_that_were_not_analysed(id: str) -> None:
    """A batch of three, whose examples must come out as in batches of two."""
    animal = case(id)
    keep = random_keep(animal.structure, 5)
    three = BY_ID[id].inputs(3, torch.float64, seed=7)
    outputs = animal.outputs(animal.pruned(keep), three)

    for start in (0, 1):
        part = tuple(tensor[start : start + 2] for tensor in three)
        of_part = {task: [tensor[start : start + 2] for tensor in found] for task, found in outputs.items()}
        assert deviation(of_part, animal.twin(keep, part)) <= EXACT


@pytest.mark.parametrize("id", ids)
def test_twin_in_float32(id: str) -> None:
    animal = case(id)
    keep = random_keep(animal.structure, 3)
    pruned = cut(copy.deepcopy(animal.model).float(), animal.structure, keep)
    found = animal.outputs(pruned, tuple(tensor.float() for tensor in animal.inputs))

    assert {tensor.dtype for tensors in found.values() for tensor in tensors} == {torch.float32}
    assert deviation(found, animal.twin(keep)) <= FLOAT32


@pytest.mark.parametrize("id", ids)
def test_pruned_module_trains(id: str) -> None:
    """In train mode it runs, and every parameter that learned before learns now."""
    animal = case(id)
    pruned = animal.pruned(random_keep(animal.structure, 4))
    learns = {name: gradient is not None for name, gradient in gradients(animal.model, animal).items()}

    after = gradients(pruned, animal)

    assert {name: gradient is not None for name, gradient in after.items()} == learns
    for name, gradient in after.items():
        assert gradient is None or torch.isfinite(gradient).all(), name


def gradients(model: nn.Module, animal: Case) -> dict[str, Tensor | None]:
    model = copy.deepcopy(model).train()
    output = model(*animal.inputs)
    tensors = [tensor for task in animal.structure.task_objects for tensor in task.tensors(output)]
    torch.stack([tensor.square().sum() for tensor in tensors]).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("id", [id for id in ids if not BY_ID[id].statistics])
def test_removing_is_zeroing_without_the_twin(id: str) -> None:
    """The label-free witness: removed parameters set to zero in the dense module."""
    animal = case(id)
    for seed in range(3):
        keep = random_keep(animal.structure, seed)
        expected = animal.outputs(zeroed(animal.model, animal.structure, keep))

        assert deviation(animal.outputs(animal.pruned(keep)), expected) <= EXACT


def test_a_removed_channel_is_out_of_a_norms_statistics() -> None:
    """Where channels are normalized, removing is not zeroing, and the twin knows."""
    animal = case("convnext-block")
    keep = random_keep(animal.structure, 0)
    expected = animal.outputs(zeroed(animal.model, animal.structure, keep))

    assert deviation(animal.twin(keep), expected) > 1e-3


def test_twin_reads_zeros_even_where_the_dense_network_has_none() -> None:
    """A removed unit that is NaN in the dense network is no NaN in the twin."""
    animal = case("plain")
    group = animal.structure.group("trunk.1.0")
    keep = torch.ones(animal.structure.units, dtype=torch.bool)
    keep[group.start] = False
    model = copy.deepcopy(animal.model)
    with torch.no_grad():
        model.trunk[1][0].weight[0] = float("nan")
    broken = Case(model, animal.inputs, animal.structure)

    assert all(tensor.isnan().any() for tensors in broken.outputs(model).values() for tensor in tensors)
    assert deviation(broken.outputs(broken.pruned(keep)), broken.twin(keep)) <= EXACT


def test_twin_leaves_the_exported_graph_as_it_is() -> None:
    structure: Structure = case("tiny-vit").structure
    before = str(structure.capture.graph)
    masked_twin(structure, random_keep(structure, 0))

    assert str(structure.capture.graph) == before


@pytest.mark.parametrize("id", ["depthwise-multiplier-2", "heads-bound-to-width", "unequal-split", "mlp"])
def test_twin_in_onnx_runtime(id: str, tmp_path: Path) -> None:
    animal = case(id)
    pruned = cut(copy.deepcopy(animal.model).float(), animal.structure, random_keep(animal.structure, 1))
    onnx_agrees(pruned, animal, tmp_path / "pruned.onnx")


def onnx_agrees(pruned: nn.Module, animal: Case, path: Path) -> None:
    """The float32 module's ONNX file, run on the batch that the twin was verified on and on other sizes."""
    inputs = tuple(tensor.float() for tensor in animal.inputs)
    outputs = {task.name: task.tensors for task in animal.structure.task_objects}
    facts = export_onnx(pruned, inputs, path, outputs=outputs, dynamic_size=False, tolerance=1e-4)

    assert {fact.task for fact in facts.parity} == set(animal.structure.tasks)
    assert len({fact.batch for fact in facts.parity}) >= 3
    assert max(fact.max_rel for fact in facts.parity) <= 1e-4


# timm.

LIGHT = ("resnet18", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224")
HEAVY = (
    "resnet50",
    "efficientnet_b0",
    "densenet121",
    "regnety_002",
    "hrnet_w18_small",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mobilevit_xxs",
)
BACKBONES = [
    *(pytest.param(name, marks=pytest.mark.xdist_group(f"twin of {name}")) for name in LIGHT),
    *(pytest.param(name, marks=pytest.mark.sweep) for name in HEAVY),
]
SHALLOW: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": (2, 1, 1, 1)},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "vit_tiny_patch16_224": {"depth": 3, "out_indices": 1},
}
HEADS = {"kind": LinearHead(7), "depth": DenseHead(1), "parts": ASPPHead(5)}


@functools.lru_cache(maxsize=1)
def backbone(name: str) -> Case:
    torch.manual_seed(0)
    model = multitask(name, HEADS, image_size=64, **SHALLOW.get(name, {}))
    randomize_norms(model)
    awaken(model)
    inputs = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    return Case.of(model.double().eval(), (inputs,), model.tasks())


def awaken(model: nn.Module) -> None:
    """Layer scales start so near to zero that their blocks compute nothing: give them what training might."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.2, 0.8)


@pytest.mark.parametrize("plan_kind", PLANS)
@pytest.mark.parametrize("name", BACKBONES)
def test_twin_of_timm(name: str, plan_kind: str, tmp_path: Path) -> None:
    animal = backbone(name)
    keep = PLANS[plan_kind](animal, 0)
    twin = animal.twin(keep)
    pruned = animal.pruned(keep)

    assert deviation(animal.outputs(pruned), twin) <= EXACT
    assert deviation(twin, animal.outputs(animal.model)) > 1e-3
    before, after = (sum(p.numel() for p in model.parameters()) for model in (animal.model, pruned))
    assert after <= 0.6 * before
    small = pruned.float()
    found = animal.outputs(small, (animal.inputs[0].float(),))
    assert deviation(found, twin) <= FLOAT32
    onnx_agrees(small, animal, tmp_path / f"{name}.onnx")
