"""``nn.MultiheadAttention`` and torch's transformer layers: heads and widths are removed from the module."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.graph.packed_attention import MultiheadAttention, follow_weights
from disparse_structured.structure import analyse, count_macs
from tests.support.plans import Case, random_keep

TASK = [ds.Task("out", ())]
TOKENS = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("mask", [None, "bool", "float", "each head"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_it_computes_what_torch_computes(mask: str | None, need_weights: bool, batched: bool) -> None:
    torch.manual_seed(0)
    for first, kdim, average, padded, bias in itertools.product(
        (True, False), (None, 6), *[(True, False)] * 3
    ):
        stock = (
            nn.MultiheadAttention(8, 2, batch_first=first, kdim=kdim, vdim=kdim, bias=bias).double().eval()
        )
        own = copy.deepcopy(stock)
        follow_weights(own)
        assert type(own) is MultiheadAttention
        query, key = torch.randn(3, 5, 8).double(), torch.randn(3, 7, kdim or 8).double()
        padding = torch.zeros(3, 7, dtype=torch.bool) if padded else None
        if padding is not None:
            padding[:, 0] = True
        if not batched:
            query, key, padding = query[0], key[0], None if padding is None else padding[0]
        elif not first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        masks = {
            None: None,
            "bool": torch.ones(5, 7).triu(3).bool(),
            "float": torch.randn(5, 7).double(),
            "each head": torch.randn((3 if batched else 1) * 2, 5, 7).double(),
        }
        options = {"key_padding_mask": padding, "need_weights": need_weights, "attn_mask": masks[mask]}
        found = own(query, key, key, average_attn_weights=average, **options)
        expected = stock(query, key, key, average_attn_weights=average, **options)
        torch.testing.assert_close(found, expected)


class Encoder(nn.Module):
    """Torch's encoder between two linear layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, **options)
        self.stem, self.body, self.head = nn.Linear(6, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


class Reads(nn.Module):
    """Cross-attention with its own widths, and the decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.memory = nn.Linear(6, 12), nn.Linear(6, 10)
        self.cross = nn.MultiheadAttention(12, 3, kdim=10, vdim=10)
        self.decoder = nn.TransformerDecoderLayer(12, 2, 20)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        y, memory = self.stem(x), self.memory(x)
        y = y + self.cross(y, memory, memory)[0]
        return self.head(self.decoder(y, y)).transpose(0, 1)


@pytest.mark.parametrize("make", [Encoder, lambda: Encoder(norm_first=True, activation="gelu"), Reads])
def test_heads_and_widths_are_removed_and_the_result_is_the_masked_twin(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    found = Case.of(make().double().eval(), (TOKENS,), TASK)

    assert {"head", "channel"} == {group.kind for group in found.structure.groups}
    assert found.structure.cost.macs.dense == count_macs(found.model, (TOKENS,))
    for seed in range(3):
        keep = random_keep(found.structure, seed)
        assert found.deviation(keep) <= 1e-9
        assert count_macs(found.pruned(keep), (TOKENS,)) == found.structure.cost.macs.total(keep)


def test_a_pruned_encoder_trains_is_loaded_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    result = ds.prune(model, TOKENS.float().repeat(8, 1, 1), TASK, macs=0.5)
    layers = [layer.self_attn for layer in result.model.body.layers]

    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in model.body.layers)
    assert all(len(each.in_proj_weight) == 3 * each.num_heads * each.head_dim for each in layers)
    assert {each.embed_dim for each in layers} == {result.model.stem.out_features}
    with torch.no_grad():  # torch would take its fused path here
        expected = result.model(TOKENS.float())
    result.model.train()(TOKENS.float()).square().mean().backward()
    result.save(tmp_path)
    loaded = ds.load(tmp_path, Encoder)
    torch.testing.assert_close(loaded(TOKENS.float()), expected)
    facts = result.export(tmp_path / "model.onnx")
    assert max(fact.max_rel for fact in facts.parity) <= 1e-4


def test_what_it_leaves_out_is_left_to_torch() -> None:
    class Biased(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head(self.body(y, y, y, need_weights=False)[0])

    structure = analyse(Biased().double().eval(), (TOKENS,), TASK)
    assert not any(group.kind == "head" for group in structure.groups)
