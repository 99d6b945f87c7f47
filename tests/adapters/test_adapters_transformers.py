"""Pruned networks of transformers keep their widths when saved: by an ordinary config, or by a record."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import disparse_structured as ds
from disparse_structured.adapters.transformers import (
    MultiTask,
    PooledHead,
    PrunedConfig,
    TokenHead,
    fitted_config,
    from_pretrained,
    save_pretrained,
)
from disparse_structured.errors import LoadError, TaskError, UnsupportedModelError
from disparse_structured.pipeline import PruningResult

transformers.logging.set_verbosity_error()

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {"vocab_size": 60, "max_position_embeddings": 32}
DECODER = {**SIZES, "vocab_size": 60, "num_key_value_heads": 2, "use_cache": False}
PATCHES = {"image_size": 16, "patch_size": 8}
IDS = torch.randint(1, 60, (4, 9), generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TEXT, IMAGES = {"input_ids": IDS}, {"pixel_values": PIXELS}
PAIRS = {**TEXT, **IMAGES, "attention_mask": torch.ones_like(IDS)}

Case = tuple[str, dict[str, Any], dict[str, torch.Tensor], tuple[str, ...], tuple[str, ...]]
CASES: dict[str, Case] = {
    "Qwen2": ("Qwen2ForCausalLM", DECODER, TEXT, (), ("intermediate_size",)),
    "Llama": ("LlamaForCausalLM", DECODER, TEXT, (), ("intermediate_size",)),
    "BERT": (
        "BertForSequenceClassification",
        {**SIZES, **WORDS},
        TEXT,
        ("*attention*", "*pooler*"),
        ("intermediate_size",),
    ),
    "ViT": (
        "ViTForImageClassification", {**SIZES, **PATCHES}, IMAGES, ("*attention*",), ("intermediate_size",)
    ),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        {**WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        TEXT,
        ("*attention*", "pre_classifier"),
        ("hidden_dim",),
    ),
    "GPT-2": (
        "GPT2LMHeadModel",
        {"vocab_size": 60, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
        TEXT,
        ("*attn*",),
        ("n_inner",),
    ),
    "CLIP": (
        "CLIPModel",
        {
            "text_config": {**SIZES, **WORDS, "projection_dim": 16},
            "vision_config": {**SIZES, **PATCHES, "projection_dim": 16},
            "projection_dim": 16,
        },
        PAIRS,
        ("*attn*",),
        ("text_config", "vision_config"),
    ),
}  # fmt: skip


def pairs(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The examples two by two, for which the graph of the structure serves as it is."""
    return [{key: value[start : start + 2] for key, value in inputs.items()} for start in (0, 2)]


@functools.cache
def dense(name: str) -> transformers.PreTrainedModel:
    kind, config, *_ = CASES[name]
    torch.manual_seed(0)
    found = getattr(transformers, kind)
    return found(found.config_class(**config)).eval()


@functools.cache
def pruned(name: str, uniform: bool) -> PruningResult:
    _, _, inputs, protected, _ = CASES[name]
    budget = ds.Budget(macs=0.8, uniform=uniform, protected=protected if uniform else ())
    return ds.prune(dense(name), pairs(inputs), budget=budget, method=ds.DiSparse(), refit=None, verify=False)


def logits(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        output = model(**CASES[name][2])
    found: torch.Tensor = output["logits_per_image" if name == "CLIP" else "logits"]
    return found


def trains(model: nn.Module, name: str) -> bool:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(**CASES[name][2])[0].square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_where_widths_are_uniform_transformers_alone_loads_the_folder(name: str, tmp_path: Path) -> None:
    result, fields = pruned(name, True), CASES[name][4]
    config = result.model.config
    before = json.dumps(config.to_dict(), default=str)

    written = save_pretrained(result, tmp_path)
    loaded = getattr(transformers, CASES[name][0]).from_pretrained(tmp_path)

    assert type(written) is type(config)
    changed = {key for key, value in written.to_dict().items() if config.to_dict().get(key) != value}
    assert changed - {"architectures", "dtype"} == set(fields)
    assert torch.equal(logits(loaded, name), logits(result.model, name))
    assert torch.equal(logits(from_pretrained(tmp_path), name), logits(result.model, name))
    assert (result.model.config is config, json.dumps(config.to_dict(), default=str)) == (True, before)
    assert trains(loaded, name)


@pytest.mark.parametrize("name", CASES)
def test_where_they_are_not_a_record_loads_without_remote_code(name: str, tmp_path: Path) -> None:
    result = pruned(name, False)

    written = save_pretrained(result, tmp_path)
    loaded = from_pretrained(tmp_path)
    auto = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=False)

    assert isinstance(written, PrunedConfig)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".safetensors")]
    assert type(loaded) is type(auto) is type(result.model)
    assert not loaded.training
    for model in (loaded, auto):
        assert torch.equal(logits(model, name), logits(result.model, name))
    assert trains(loaded, name)


def test_what_was_loaded_can_be_saved_and_pruned_again(tmp_path: Path) -> None:
    save_pretrained(pruned("Qwen2", False), tmp_path / "once")
    loaded = from_pretrained(tmp_path / "once")

    save_pretrained(loaded, tmp_path / "twice")
    again = ds.prune(loaded, pairs(TEXT), macs=0.8, method=ds.DiSparse(), refit=None, verify=False)
    save_pretrained(again, tmp_path / "again")

    assert torch.equal(logits(from_pretrained(tmp_path / "twice"), "Qwen2"), logits(loaded, "Qwen2"))
    assert torch.equal(logits(from_pretrained(tmp_path / "again"), "Qwen2"), logits(again.model, "Qwen2"))


def test_with_a_fitted_config_the_models_own_save_pretrained_works(tmp_path: Path) -> None:
    result = pruned("Llama", True)
    loaded = type(result.model)(fitted_config(result)).eval()
    loaded.load_state_dict(result.model.state_dict())

    loaded.save_pretrained(tmp_path)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(model, "Llama"), logits(result.model, "Llama"))


def test_heads_and_hidden_width_of_a_decoder_follow_too(tmp_path: Path) -> None:
    """The head dimension is then no longer the hidden width by the number of heads."""
    model = dense("Qwen2")
    half = ds.Budget(macs=0.9, shares={"*": (0.5, 0.5)})
    result = ds.prune(model, pairs(TEXT), budget=half, method=ds.DiSparse(), refit=None)

    written = save_pretrained(result, tmp_path)

    assert (written.hidden_size, written.num_attention_heads, written.num_key_value_heads) == (16, 2, 1)
    assert (written.head_dim, written.intermediate_size) == (8, 32)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, "Qwen2"), logits(result.model, "Qwen2"))


def test_each_field_of_an_output_is_a_task() -> None:
    config = transformers.BertConfig(**SIZES, **WORDS)
    model = transformers.BertForQuestionAnswering(config).eval()

    result = ds.prune(model, pairs(TEXT), macs=0.8, method=ds.DiSparse(), refit=None, verify=False)

    assert [task.name for task in result.tasks] == ["start_logits", "end_logits"]


def test_heads_on_one_backbone_are_tasks_that_vote() -> None:
    backbone = transformers.BertModel(transformers.BertConfig(**SIZES, **WORDS))
    heads = {"topic": PooledHead(7), "mean": PooledHead(2, token=None), "tags": TokenHead(5)}
    model = MultiTask(backbone, heads).eval()

    result = ds.prune(model, pairs(TEXT), macs=0.7, method=ds.DiSparse(), refit=None)

    shapes = {name: tuple(tensor.shape) for name, tensor in result.model(**TEXT).items()}
    assert shapes == {"topic": (4, 7), "mean": (4, 2), "tags": (4, 9, 5)}
    assert [task.name for task in result.tasks] == list(heads)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MultiTask(dense("BERT").bert, {}), "has no head"),
        (lambda: MultiTask(dense("BERT").bert, {"topic": 7}), "'topic' is 7"),
        (lambda: MultiTask(dense("BERT").bert, {"topic": TokenHead(0)}), "outputs >= 1"),
        (lambda: MultiTask(nn.Linear(2, 2), {"topic": TokenHead(2)}), "no config.hidden_size"),
    ],
)
def test_heads_that_make_no_sense_are_refused(make: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(TaskError, match=text):
        make()


def test_folders_and_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.json of a model of transformers"):
        from_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"Linear is not a model of transformers.*result.save"):
        save_pretrained(nn.Linear(2, 2), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_the_pruned_model_wrote_with_the_dense_config_is_explained(tmp_path: Path) -> None:
    pruned("Qwen2", False).model.save_pretrained(tmp_path)

    with pytest.raises(
        LoadError, match=r"do not have the widths that config.json says[\s\S]*own save_pretrained"
    ):
        from_pretrained(tmp_path)


def test_a_record_that_does_not_fit_and_an_unknown_class_are_explained(tmp_path: Path) -> None:
    save_pretrained(pruned("Qwen2", False), tmp_path)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text(encoding="utf-8"))

    document["widths"]["shapes"]["model.nowhere.weight"] = [2]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(
        LoadError, match=r"names 'model.nowhere.weight', which Qwen2ForCausalLM does not have"
    ):
        from_pretrained(tmp_path)

    document["architecture"] = "MineForCausalLM"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(LoadError, match=r"MineForCausalLM, which transformers .* Pass its class as kind="):
        from_pretrained(tmp_path)
