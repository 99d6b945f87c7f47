"""A ``BasePruner`` user's call: their pruners on our graph, and their arguments as a budget."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import disparse_structured as ds
from disparse_structured.adapters.torch_pruning import DisparseImportance
from disparse_structured.adapters.torch_pruning_arguments import budget_of
from disparse_structured.adapters.torch_pruning_pruners import verified
from disparse_structured.errors import BudgetError, OptionError
from tests.support.plans import case, snapshot

X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(3))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
MAGNITUDE = tp.importance.GroupMagnitudeImportance()


class TwoHeads(nn.Module):
    """A residual trunk with batch norms, and a head with a hidden layer for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.between = nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.outer = nn.Conv2d(10, 12, 3, padding=1)
        self.depth = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        self.kind = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = torch.relu(self.norm(self.stem(x)))
        trunk = first + self.outer(torch.relu(self.between(self.inner(first))))
        return {"depth": self.depth(trunk), "kind": self.kind(trunk.mean((2, 3)))}


def network() -> TwoHeads:
    torch.manual_seed(1)
    model = TwoHeads().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def vit() -> nn.Module:
    torch.manual_seed(1)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=4, num_classes=5
    ).eval()


def outputs(model: Any) -> list[nn.Module]:
    return [model.depth[2], model.kind[2]]


def widths(model: Any) -> dict[str, int]:
    layers = {
        "stem": model.stem,
        "inner": model.inner,
        "outer": model.outer,
        "depth": model.depth[0],
        "kind": model.kind[0],
    }
    return {name: layer.weight.shape[0] for name, layer in layers.items()}


def same_tensors(one: nn.Module, other: nn.Module) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


# Their pruners, where stock Torch-Pruning is right: the same network.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pruning_ratio": 0.3, "max_pruning_ratio": 0.9},
        {"global_pruning": True, "pruning_ratio": 0.4},
        {"pruning_ratio_dict": lambda m: {m.depth: 0.25, (m.inner, m.kind[0]): 0.75}},
        {
            "global_pruning": True,
            "pruning_ratio_dict": lambda m: {(m.inner, m.kind[0]): 0.6, m.depth: 0.25},
        },
        {"global_pruning": True, "isomorphic": True},
        {"iterative_steps": 2, "pruning_ratio": 0.6},
    ],
    ids=["ratio", "another", "global", "by layer", "pooled", "isomorphic", "two steps"],
)
def test_what_is_removed_is_what_stock_torch_pruning_removes(options: dict[str, Any]) -> None:
    made = []
    for pruner in (tp.pruner.BasePruner, verified(tp.pruner.BasePruner, verify=False)):
        model = network()
        given = {name: value(model) if callable(value) else value for name, value in options.items()}
        ours = pruner(model, X, importance=MAGNITUDE, ignored_layers=outputs(model), **given)
        for _ in range(options.get("iterative_steps", 1)):
            ours.step()
        made.append(model)

    same_tensors(*made)
    assert widths(made[0]) != widths(network())


@pytest.mark.parametrize(
    "kind", [tp.pruner.GroupNormPruner, tp.pruner.BNScalePruner, tp.pruner.GrowingRegPruner]
)
def test_regularization_is_that_of_stock_torch_pruning(kind: Any) -> None:
    gradients = []
    for pruner in (kind, verified(kind)):
        model = network()
        regularizer = pruner(model, X, importance=MAGNITUDE, reg=0.1, ignored_layers=outputs(model))
        regularizer.update_regularizer()
        sum(output.square().sum() for output in model(X).values()).backward()
        regularizer.regularize(model)
        gradients.append([parameter.grad for parameter in model.parameters()])

    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_steps_can_be_interactive_and_replayed() -> None:
    model = network()
    pruner = verified(tp.pruner.BasePruner)(model, X, MAGNITUDE, ignored_layers=[model.inner])
    for group in pruner.step(interactive=True):
        group.prune()
    again = network()
    verified(tp.pruner.BasePruner)(again, X, MAGNITUDE).load_pruning_history(pruner.pruning_history())

    assert widths(model) == {"stem": 6, "inner": 10, "outer": 6, "depth": 4, "kind": 10}
    same_tensors(again, model)


def test_each_step_is_verified_on_what_the_last_one_left() -> None:
    model = vit()
    pruner = verified(tp.pruner.BasePruner)(model, IMAGES, MAGNITUDE, iterative_steps=2)
    found = []
    for _ in range(2):
        pruner.step()
        found.append((model.embed_dim, model.blocks[0].mlp.fc1.out_features))
        assert pruner.verification.deviation["output"] <= 1e-9

    assert found == [(24, 96), (16, 64)]
    assert model(IMAGES).shape == (2, 5)


def test_a_step_too_many_prunes_nothing_and_says_so() -> None:
    model = network()
    pruner = verified(tp.pruner.BasePruner)(model, X, MAGNITUDE)
    pruner.step()
    before = widths(model)
    with pytest.warns(UserWarning, match="all 1 steps are done, so nothing is pruned"):
        pruner.step()

    assert widths(model) == before


# Networks that stock Torch-Pruning cannot read.


def shufflenet() -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.ShuffleNetV2([1, 2, 1], [8, 16, 16, 16, 24], num_classes=5).eval()


def stock_answer(model: nn.Module) -> Tensor:
    head = [*model.modules()][-1]
    tp.pruner.BasePruner(model, IMAGES, MAGNITUDE, ignored_layers=[head]).step()
    return model(IMAGES)


@pytest.mark.parametrize("make", [vit, shufflenet])
def test_networks_that_stock_torch_pruning_fails_on(make: Any) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        stock_answer(make())

    model = make()
    dense = sum(parameter.numel() for parameter in model.parameters())
    pruner = verified(tp.pruner.GroupNormPruner)(
        model,
        example_inputs=IMAGES,
        importance=MAGNITUDE,
        pruning_ratio=0.5,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
    )
    pruner.step()

    assert pruner.verification.deviation["output"] <= 1e-9
    assert pruner.refused == ()
    assert model(IMAGES).shape == (2, 5)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.5 * dense


def test_our_importance_drives_their_pruner_on_our_graph() -> None:
    model = vit()
    structure = ds.analyse(model, IMAGES)
    scores = ds.score(model, structure, [IMAGES], ds.criteria.Fisher()).scores
    importance = DisparseImportance(model, structure, scores)
    pruner = verified(tp.pruner.BasePruner, structure=structure)(
        model, IMAGES, importance, global_pruning=True, pruning_ratio=0.25
    )
    removed = torch.zeros(structure.units, dtype=torch.bool)
    for group in pruner.step(interactive=True):
        removed[group._units] = True
        group.prune()

    heads = torch.zeros(structure.units, dtype=torch.bool)
    for group in structure.groups:
        heads[group.slice] = group.kind == "head"
    order = importance.order[~heads]
    assert torch.equal(removed[~heads], order.argsort().argsort() < removed.sum())
    assert int(removed.sum()) == (~heads).sum() - int(0.75 * (~heads).sum())
    assert not removed[heads].any()


def test_a_model_with_named_inputs() -> None:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    model = BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.randint(0, 50, (2, 6)), "attention_mask": torch.ones(2, 6).long()}
    pruner = verified(tp.pruner.BasePruner)(
        model, inputs, MAGNITUDE, pruning_ratio=0.6, round_to=4, ignored_layers=[model.bert.pooler.dense]
    )
    pruner.step()

    layer = model.bert.encoder.layer[0]
    assert pruner.verification.deviation["logits"] <= 1e-9
    assert (layer.intermediate.dense.out_features, layer.output.dense.out_features) == (12, 8)
    assert model.bert.pooler.dense.out_features == 16
    assert layer.attention.self.query.out_features == 16
    assert model(**inputs).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}, 3 * 2 * 8),
        ({"prune_num_heads": False, "prune_head_dims": True, "pruning_ratio": 0.5}, 3 * 4 * 4),
        ({"prune_num_heads": False, "prune_head_dims": False, "pruning_ratio": 0.5}, 3 * 4 * 8),
    ],
    ids=["heads", "dimensions", "neither"],
)
def test_what_is_removed_from_attention(options: dict[str, Any], rows: int) -> None:
    model = vit()
    heads = {block.attn.qkv: 4 for block in model.blocks}
    verified(tp.pruner.BasePruner)(model, IMAGES, MAGNITUDE, num_heads=heads, **options).step()

    assert [block.attn.qkv.out_features for block in model.blocks] == [rows]
    assert model(IMAGES).shape == (2, 5)


def test_count_constraints_are_met() -> None:
    animal = case("heads-bound-to-width")
    model = copy.deepcopy(animal.model)
    pruner = verified(tp.pruner.BasePruner, structure=animal.structure)(
        model, animal.inputs, MAGNITUDE, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.2
    )
    kept = {group.name: group.units for group in animal.structure.groups}
    for group in pruner.step(interactive=True):
        (name,) = {
            each.name
            for each in animal.structure.groups
            if each.start <= group._units[0] < each.start + each.units
        }
        kept[name] -= len(group._units)
        group.prune()

    assert animal.structure.constraints
    assert all(constraint.allows(kept) for constraint in animal.structure.constraints)
    assert sum(kept.values()) < animal.structure.units
    assert max(pruner.verification.deviation.values()) <= 1e-9


def test_a_layer_that_forward_cannot_follow_is_left_whole_and_named() -> None:
    class Checks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 8)
            self.third = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            if self.first.weight.shape[0] != 12:
                raise ValueError("twelve, please")
            return self.third(self.second(x).relu())

    model, x = Checks().eval(), torch.randn(2, 4)
    pruner = verified(tp.pruner.BasePruner)(model, x, MAGNITUDE)
    pruner.step()

    assert [(each.group, "twelve" in each.reason) for each in pruner.refused] == [("first", True)]
    assert (model.first.out_features, model.second.out_features) == (12, 4)
    assert model(x).shape == (2, 2)


def test_a_training_model_keeps_its_mode_and_its_gradients() -> None:
    model = network().train()
    model.stem.requires_grad_(False)
    statistics = model.norm.running_mean.clone()
    pruner = verified(tp.pruner.BasePruner)(model, X, MAGNITUDE, ignored_layers=[model.stem, model.outer])
    pruner.step()

    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.stem.parameters()] == [False, False]
    assert torch.equal(model.norm.running_mean, statistics)


# Their arguments as a budget.


def read(model: nn.Module, **arguments: Any) -> ds.Budget:
    return budget_of(model, ds.analyse(model, X), **arguments)


def pruned(model: nn.Module, **arguments: Any) -> dict[str, int]:
    structure = ds.analyse(model, X)
    budget = budget_of(model, structure, **arguments)
    plan = ds.plan(structure, ds.score(model, structure, criterion=ds.criteria.Magnitude()).scores, budget)
    return widths(ds.apply(model, plan, structure).model)


def test_a_ratio_is_a_share_of_the_channels_of_every_layer() -> None:
    assert pruned(network(), pruning_ratio=0.5) == {
        "stem": 6, "inner": 5, "outer": 6, "depth": 4, "kind": 10,
    }  # fmt: skip
    assert pruned(network(), pruning_ratio=0.5, max_pruning_ratio=0.25, round_to=4) == {
        "stem": 12, "inner": 8, "outer": 12, "depth": 8, "kind": 16,
    }  # fmt: skip


def test_ratios_by_layer_and_ignored_layers_are_limits_per_layer() -> None:
    model = network()
    found = pruned(
        model,
        pruning_ratio_dict={model.depth: 0.25, (model.inner, model.kind[0]): 0.8},
        ignored_layers=[model.stem, *outputs(model)],
    )

    assert found == {"stem": 12, "inner": 2, "outer": 12, "depth": 6, "kind": 4}


def test_an_ignored_parameter_keeps_its_shape() -> None:
    model = network()

    assert pruned(model, ignored_layers=[model.norm.weight]) == {
        "stem": 12, "inner": 5, "outer": 12, "depth": 4, "kind": 10,
    }  # fmt: skip


def test_a_global_ratio_is_a_share_of_all_channels() -> None:
    model = network()
    found = pruned(
        model,
        global_pruning=True,
        pruning_ratio=0.5,
        pruning_ratio_dict={model.kind[0]: 0.25},
        ignored_layers=[model.depth],
        max_pruning_ratio=0.8,
    )

    assert (found["kind"], found["depth"]) == (15, 8)
    assert found["stem"] + found["inner"] == 11
    assert min(found["stem"] / 12, found["inner"] / 10) >= 0.2


def test_the_budget_is_taken_by_prune() -> None:
    model = network()
    before = snapshot(model)
    structure = ds.analyse(model, X)
    budget = budget_of(model, structure, pruning_ratio=0.25)
    result = ds.prune(model, X, structure=structure, budget=budget, method=ds.DiSparse(), refit=None)

    assert widths(result.model) == {"stem": 9, "inner": 8, "outer": 9, "depth": 6, "kind": 15}
    assert snapshot(model) == before


def test_a_ratio_for_heads_needs_the_structure_of_heads() -> None:
    model = vit()
    heads = {block.attn.qkv: 4 for block in model.blocks}
    structure = ds.analyse(model, IMAGES)
    budget = budget_of(
        model, structure, num_heads=heads, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5
    )
    scores = ds.score(model, structure, criterion=ds.criteria.Magnitude()).scores
    plan = ds.plan(structure, scores, budget)

    assert {group.kept for group in plan.groups if group.kind == "head"} == {2}
    with pytest.raises(OptionError, match=r"Read it with attention='head_dim'\."):
        budget_of(model, structure, num_heads=heads)
    with pytest.raises(OptionError, match="prune_num_heads and prune_head_dims are both True"):
        budget_of(model, structure, num_heads=heads, prune_num_heads=True)


def test_nothing_to_remove_is_said_by_the_budget() -> None:
    model = network()
    structure = ds.analyse(model, X)
    scores = torch.ones(2, structure.units)
    with pytest.raises(BudgetError, match="nothing to prune"):
        ds.plan(structure, scores, budget_of(model, structure, pruning_ratio=0.0))
    pinned = nn.Conv2d(3, 4, 3)
    with pytest.raises(BudgetError, match="no channel of this Conv2d can be removed"):
        budget_of(pinned, ds.analyse(pinned, X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"isomorphic": True}, r"isomorphic .* method=DiSparse\(ranking=IsomorphicRanking\(\)\)"),
        ({"iterative_steps": 5}, r"iterative_steps .*Iterative\(rounds=\.\.\.\)"),
        ({"importance": MAGNITUDE}, r"importance .*criterion=ImportanceCriterion\(importance\)"),
        ({"ch_sparsity": 0.5}, "ch_sparsity .* Call it pruning_ratio"),
        ({"customized_pruners": {nn.Linear: None}}, "customized_pruners .* add a rule"),
        ({"forward_fn": print}, "forward_fn .* dict by name"),
        ({"ratio": 0.5}, "BasePruner has no argument 'ratio'"),
        ({"pruning_ratio": 1.5}, r"pruning_ratio holds 1\.5\. A ratio is the share to remove"),
        ({"pruning_ratio_dict": {TwoHeads(): 0.5}}, "pruning_ratio_dict holds a TwoHeads outside the model"),
        ({"ignored_layers": [nn.Conv2d]}, "ignored_layers holds the class Conv2d"),
        ({"ignored_layers": ["stem"]}, "ignored_layers holds a str"),
        ({"round_to": 0}, "round_to must be an integer >= 1 or None, got 0"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read(network(), **arguments)


def test_layers_that_share_a_ratio_globally_are_for_the_pruner() -> None:
    model = network()
    with pytest.raises(OptionError, match=r"depth\.0, kind\.0 share one ratio.*use verified\(pruner\)"):
        read(model, global_pruning=True, pruning_ratio_dict={(model.depth, model.kind): 0.5})


def test_what_describes_the_network_is_accepted() -> None:
    model = network()
    given = {"in_channel_groups": {model.stem: 3}, "unwrapped_parameters": [], "output_transform": None}

    assert read(model, **given) == read(model)


def test_a_pruner_refuses_what_it_cannot_do_before_it_touches_the_model() -> None:
    model = network()
    before = snapshot(model)
    with pytest.raises(
        OptionError, match=r"output_transform has no meaning here\. Name the outputs as tasks"
    ):
        verified(tp.pruner.GroupNormPruner)(model, X, MAGNITUDE, output_transform=len)
    with pytest.raises(OptionError, match="ignored_layers holds a Conv2d outside the model"):
        verified(tp.pruner.GroupNormPruner)(model, X, MAGNITUDE, ignored_layers=[network().stem])
    with pytest.raises(TypeError, match="unexpected keyword argument 'ratio'"):
        verified(tp.pruner.BasePruner)(model, X, MAGNITUDE, ratio=0.5)

    assert snapshot(model) == before
