"""The pruned graph of real networks takes any batch, and is loaded for other sizes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import disparse_structured as ds
from disparse_structured.data.differences import difference
from disparse_structured.errors import BatchError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import Form, analyse
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.tasks import Task
from disparse_structured.verification.twin import masked_twin
from tests.support.plans import random_plan

LOGITS = Task("logits", "logits")


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=16,
    )  # fmt: skip
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def bloom() -> nn.Module:
    """Its position biases are repeated for each example."""
    config = transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4, use_cache=False)
    model: nn.Module = transformers.BloomForCausalLM(config)
    return model


def timesformer() -> nn.Module:
    """It takes the class tokens of all examples from the frames of the first one, where they are the same."""
    config = transformers.TimesformerConfig(
        image_size=16, patch_size=8, num_frames=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, num_labels=5,
    )  # fmt: skip
    model: nn.Module = transformers.TimesformerForVideoClassification(config)
    return model


def swin_v2() -> nn.Module:
    swin = torchvision.models.swin_transformer
    return swin.SwinTransformer(
        [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5, block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
    )  # fmt: skip


def vit(*, dynamic: bool) -> nn.Module:
    model: nn.Module = timm.create_model("test_vit", img_size=32, num_classes=5, dynamic_img_size=dynamic)
    return model


def tokens(count: int, length: int = 8) -> Tensor:
    return torch.randint(3, 50, (count, length), generator=torch.Generator().manual_seed(count))


def text(count: int) -> dict[str, Tensor]:
    return {"input_ids": tokens(count), "attention_mask": torch.ones(count, 8, dtype=torch.long)}


def image(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def clips(count: int) -> dict[str, Tensor]:
    return {"pixel_values": image(count * 2, 16).reshape(count, 2, 3, 16, 16).double()}


def images(count: int) -> dict[str, Tensor]:
    return {"x": image(count, 32).double()}


Network = tuple[Callable[[], nn.Module], Callable[[int], dict[str, Tensor]], list[Task]]

NETWORKS: Mapping[str, Network] = {
    "bert": (bert, text, [LOGITS]),
    "bloom": (bloom, text, [LOGITS]),
    "timesformer": (timesformer, clips, [LOGITS]),
    "swin_v2": (swin_v2, images, [Task("output", ())]),
}


@pytest.mark.parametrize("id", NETWORKS)
def test_values_at_other_batches_are_the_masked_twins(id: str) -> None:
    build, data, tasks = NETWORKS[id]
    task = tasks[0].name
    torch.manual_seed(0)
    model = build().double().eval()
    state = {name: tensor.detach() for name, tensor in named_tensors(model)[0].items()}
    structures, inputs = {}, {}
    for count in (1, 2, 3):
        inputs[count] = data(count)
        structures[count] = analyse(model, inputs[count], tasks, form="graph")
    for examples in (1, 2):
        plan = random_plan(structures[examples], 3)
        pruned = apply_graph(model, plan, structures[examples]).model
        assert pruned.any_batch
        for count in (1, 3):
            there = structures[count]
            twin = masked_twin(there, plan.keep(there))
            with torch.no_grad():
                (expected,) = there.capture.run(state, there.example_inputs, twin)[task]
                found = pruned(**inputs[count])[task]
            assert difference(found, expected) <= 1e-9, (examples, count)


class Beams(nn.Module):
    """Adds a table that forward repeats for each example in Python, so a graph holds it for its own batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        ranks = torch.tensor([[float(i)] for _ in range(len(x)) for i in range(3)])
        return self.last(self.first(x).relu().repeat_interleave(3, 0) + ranks.to(x)).view(len(x), 3, 8).sum(1)


class OneByOne(nn.Module):
    """Computes example by example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.last(self.first(each).relu()) for each in x])


@pytest.mark.parametrize("kind", [Beams, OneByOne])
@pytest.mark.parametrize("examples", [1, 2])
def test_a_graph_that_is_for_its_own_batch_says_so(kind: type[nn.Module], examples: int) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.rand(3, 6)
    structure = analyse(model, x[:examples], form="graph")
    pruned = apply_graph(model, random_plan(structure, 3), structure).model

    assert not pruned.any_batch
    assert pruned(x[:examples])["output"].shape == (examples, 8)
    with pytest.raises(ValueError, match="its sizes are fixed"):
        pruned(x)


class Regions(nn.Module):
    """Each region begins with the number of its image, so a region of noise is of no image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 * 9, 3)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        found = torchvision.ops.roi_align(self.first(x).relu(), regions, 3)
        return self.last(found.flatten(1))


@pytest.mark.parametrize("form", ["module", "graph"])
def test_one_region_of_one_image_is_verified(form: Form) -> None:
    torch.manual_seed(0)
    model, inputs = Regions().eval(), (image(1, 16), torch.tensor([[0, 1, 2, 12.0, 12.0]]))
    structure = analyse(model, inputs, form=form)
    applied = ds.apply(model, random_plan(structure, 3), structure)

    assert applied.refused == ()
    assert applied.verification is not None
    assert max(applied.verification.deviation.values()) <= 1e-9
    assert sum(each.numel() for each in applied.model.parameters()) < sum(
        each.numel() for each in model.parameters()
    )


def test_a_masked_text_at_another_batch_and_length() -> None:
    """The example's mask hides nothing; that of another batch counts. The length is fixed."""
    torch.manual_seed(0)
    model = bert().double().eval()
    structure = analyse(model, text(2), [LOGITS], form="graph")
    pruned = apply_graph(model, random_plan(structure, 3), structure).model
    given = text(3)
    given["attention_mask"][:, 5:] = 0
    other = {**given, "input_ids": torch.cat([given["input_ids"][:, :5], tokens(3, 3)], 1)}

    with torch.no_grad():
        found = pruned(**given)["logits"]
        assert difference(pruned(**other)["logits"], found) <= 1e-9
        assert not torch.allclose(pruned(**text(3))["logits"], found)
        reverse = dict(reversed(given.items()))
        assert torch.equal(pruned(**reverse)["logits"], found)
        with pytest.raises(ValueError, match=r"takes \['attention_mask'\] by name, found \['mask'\]"):
            pruned(given["input_ids"], mask=given["attention_mask"])

    longer = pytree.tree_map(lambda leaf: torch.cat([leaf, leaf], 1), text(1))
    with pytest.raises(
        ValueError, match=re.escape("input 0 is (1, 16), but the graph was made for (any, 8)")
    ):
        pruned(**longer)


def test_a_text_network_is_saved_loaded_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert().eval()
    structure = analyse(model, text(2), [LOGITS], form="graph")
    result = ds.prune(model, [text(4), text(4)], structure=structure, macs=0.7, refit=None)
    result.save(tmp_path)
    loaded = ds.load(tmp_path, bert)
    for count in (1, 3):
        with torch.no_grad():
            assert torch.equal(loaded(**text(count))["logits"], result.model(**text(count))["logits"])

    facts = result.export(tmp_path / "model.onnx")
    assert facts.dynamic.startswith("batch"), facts
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for count in (1, 3):
        names = [each.name for each in session.get_inputs()]
        given = (each.numpy() for each in text(count).values())
        (logits,) = session.run(None, dict(zip(names, given, strict=True)))
        with torch.no_grad():
            assert np.allclose(logits, result.model(**text(count))["logits"], atol=1e-5)


@pytest.mark.filterwarnings("error:the model loaded from")
def test_a_graph_is_loaded_for_another_image_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vit(dynamic=True).eval()
    task = Task("logits", ())
    structure = analyse(model, image(2, 32), [task], form="graph")
    result = ds.prune(model, image(8, 32), structure=structure, macs=0.7, method=ds.DiSparse(), refit=None)
    result.save(tmp_path)
    with pytest.raises(ValueError, match=r"its sizes are fixed\. .* example_inputs= to load\(\)"):
        result.model(image(1, 48))
    loaded = ds.load(tmp_path, lambda: copy.deepcopy(model), example_inputs=(image(1, 48),)).double()

    there = analyse(model.double(), image(3, 48).double(), [task], form="graph")
    state = {name: tensor.detach() for name, tensor in named_tensors(model)[0].items()}
    twin = masked_twin(there, result.plan.keep(there))
    with torch.no_grad():
        (expected,) = there.capture.run(state, there.example_inputs, twin)["logits"]
        found = loaded(image(3, 48).double())["logits"]
    assert difference(found, expected) <= 1e-5
    with pytest.raises(BatchError, match="48"):
        ds.load(tmp_path, lambda: vit(dynamic=False), example_inputs=(image(2, 48),))
