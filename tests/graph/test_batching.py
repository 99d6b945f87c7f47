"""Which inputs have a batch dimension: found out by running the model, or said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from torch import Tensor, nn
from torchvision.ops import roi_align

import disparse_structured as ds
from disparse_structured.data.call import Batched
from disparse_structured.errors import BatchError, OptionError
from disparse_structured.graph.batching import with_batch
from disparse_structured.structure import Structure, count_macs


def seeded(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Regions(nn.Module):
    """A detector's head: one row of outputs for each region, whatever the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.mix = nn.Linear(16 * 4, 24)
        self.kinds, self.boxes = nn.Linear(24, 5), nn.Linear(24, 4)

    def forward(self, images: Tensor, regions: Tensor) -> dict[str, Tensor]:
        x = roi_align(self.trunk(images), regions, (2, 2)).flatten(1)
        x = self.mix(x).relu()
        return {"kinds": self.kinds(x), "boxes": self.boxes(x)}


def regions(count: int, images: int) -> Tensor:
    corners = torch.tensor([1.0, 1.0, 6.0, 6.0]) + seeded(count, 4)
    return torch.cat([(torch.arange(count) % images)[:, None].float(), corners], 1)


class Both(Regions):
    """Also returns a map of every image, which needs no region."""

    def forward(self, images: Tensor, regions: Tensor) -> dict[str, Tensor]:
        maps = self.trunk(images)
        x = roi_align(maps, list(regions.unbind()), (2, 2)).flatten(1)
        kinds = self.kinds(self.mix(x).relu()).unflatten(0, regions.shape[:2])
        return {"maps": maps.mean((2, 3)), "kinds": kinds}


class Attending(nn.Module):
    """Attention with a mask ``[L, L]``, a table of positions ``[1, L, D]`` and a time ``[1]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, mask: Tensor, x: Tensor, positions: Tensor, time: Tensor) -> Tensor:
        x = self.embed(x) + positions + time
        x = (x @ x.mT + mask).softmax(-1) @ x
        return self.head(self.mix(x).relu())


def attending(batch: int, length: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask = torch.full((length, length), -1e4).triu(1)
    return mask, seeded(batch, length, 5), seeded(1, length, 8), torch.tensor([0.5])


class Matching(nn.Module):
    """Scores examples against a table of as many rows as there are examples, or fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(6, 24), nn.Linear(24, 8)

    def forward(self, table: Tensor, x: Tensor) -> Tensor:
        return self.out(self.mix(x).relu()) @ table.T


class Branches(nn.Module):
    """Two inputs that never meet."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(y)


def where(structure: Structure) -> tuple[int, ...] | None:
    return getattr(structure.example_inputs, "where", None)


@pytest.mark.parametrize("count", [2, 7])
def test_regions_are_the_examples_even_if_there_are_as_many_as_images(count: int) -> None:
    model = Regions().eval()
    inputs = (seeded(2, 3, 8, 8), regions(count, 2))
    structure = ds.analyse(model, inputs)

    assert where(structure) == (1,)
    assert structure.cost.macs.dense == pytest.approx(count_macs(model, structure.example_inputs), abs=1)


def test_images_and_their_regions_are_one_batch_although_some_outputs_need_images_only() -> None:
    corners = torch.tensor([1.0, 1.0, 6.0, 6.0]) + seeded(2, 3, 4)
    structure = ds.analyse(Both().eval(), (seeded(2, 3, 8, 8), corners))

    assert where(structure) is None  # every tensor has the batch


@pytest.mark.parametrize("count", [7, 16])
def test_a_detector_with_regions_is_pruned_saved_loaded_and_exported(count: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Regions().eval()
    inputs = (seeded(16, 3, 8, 8), regions(count, 16))
    result = ds.prune(model, {"images": inputs[0], "regions": inputs[1]}, parameters=0.6)

    assert "a batch of 3" in result.report.verification.beyond
    assert result.report.shared_inputs == ("images",)
    assert "shared by all examples of a batch: images" in str(result.report)
    assert result.report.deviation is not None
    result.save(tmp_path)
    assert where_saved(tmp_path) == [1]
    loaded = ds.load(tmp_path, Regions)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded(*inputs).values(), result.model(*inputs).values(), strict=True)
    )
    facts = result.export(tmp_path / "model.onnx", dynamic_size=False)
    assert facts.dynamic == "batch"
    free = {
        each.name: next(dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim)
        for each in onnx.load(tmp_path / "model.onnx").graph.input
    }
    assert free == {"images": 16, "regions": "batch"}


def where_saved(folder: Path) -> list[int]:
    tree = json.loads(json.loads((folder / "report.json").read_text())["inputs"]["tree"])
    return tree[1]["context"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch", [2, 4])
def test_masks_positions_and_times_are_shared(batch: int) -> None:
    structure = ds.analyse(Attending().eval(), attending(batch))

    assert where(structure) == (1,)
    assert structure.resizing.batch == batch


def test_a_model_with_a_mask_is_pruned_as_a_module_and_as_a_graph() -> None:
    torch.manual_seed(0)
    model = Attending().eval()
    mask, x, positions, time = attending(16)
    data = {"mask": mask, "x": x, "positions": positions, "time": time}
    batches = [{**data, "x": part} for part in x.split(4)]  # as long as the mask
    one, many = (ds.prune(model, given, macs=0.7).report for given in (data, batches))
    structure = ds.analyse(model, attending(4), form="graph")
    graph: Any = ds.prune(model, batches, macs=0.7, structure=structure).model

    assert one.deviation is not None
    assert many.deviation is not None
    assert one.deviation.final == many.deviation.final
    assert graph.any_batch
    assert graph(mask, x[:3], positions, time)["output"].shape == (3, 4, 3)


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_a_table_is_not_the_batch_though_it_comes_first(rows: int) -> None:
    model = Matching().eval()
    structure = ds.analyse(model, (seeded(rows, 8), seeded(4, 6)))

    assert where(structure) == (1,)
    result = ds.prune(model, {"table": seeded(rows, 8), "x": seeded(32, 6)}, macs=0.6, method=ds.DiSparse())
    assert result.report.samples == 32


class Small(Matching):
    """It refuses more examples than one would need to find the batch."""

    def forward(self, table: Tensor, x: Tensor) -> Tensor:
        assert len(x) < 16
        return super().forward(table, x)


def test_many_examples_are_not_run_to_find_the_batch() -> None:
    found = with_batch(Small().eval(), (seeded(5000, 8), seeded(5000, 6)))
    assert isinstance(found, Batched)
    assert found.where == (1,)


def test_inputs_that_never_meet_are_both_batched() -> None:
    assert where(ds.analyse(Branches().eval(), (seeded(4, 6), seeded(4, 5)))) is None


def test_a_batch_of_one_does_not_hide_a_batch_dimension() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(6, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.head((self.mix(x) + time[:, None]).relu())

    model = Timed().eval()
    structure = ds.analyse(model, (seeded(1, 6), seeded(1)))

    assert where(structure) is None
    assert ds.score(model, structure, [((seeded(8, 6), seeded(8)),)]).samples == 8


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_is_batched_even_if_it_hides_nothing(hidden: int, batch: int) -> None:
    """Transformers skips such a mask, and then takes one for fewer examples."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    model = transformers.BertForSequenceClassification(config).eval()
    mask = torch.ones(batch, 8, dtype=torch.long)
    mask[:, 8 - hidden :] = 0
    ids = torch.randint(3, 50, (batch, 8), generator=torch.Generator().manual_seed(0))

    assert where(ds.analyse(model, {"input_ids": ids, "attention_mask": mask}, ["logits"])) is None


def test_it_can_be_said() -> None:
    model = Regions().eval()
    inputs = (seeded(2, 3, 8, 8), regions(2, 2))

    assert where(ds.analyse(model, inputs, batched=["images"])) == (0,)
    assert where(ds.analyse(model, inputs, batched=["images", "regions"])) == (0, 1)
    with pytest.raises(OptionError, match=r"names 'rois'.*\['images', 'regions'\]"):
        ds.analyse(model, inputs, batched=["rois"])
    with pytest.raises(OptionError, match="different numbers of examples"):
        ds.analyse(model, (inputs[0], regions(3, 2)), batched=["images", "regions"])
    with pytest.raises(OptionError, match="must be a list"):
        ds.analyse(model, inputs, batched="images")
    with pytest.raises(OptionError, match="knows the batch already"):
        ds.prune(model, [inputs], macs=0.5, structure=ds.analyse(model, inputs), batched=["images"])


def test_batches_with_images_of_their_own_are_cut_apart() -> None:
    torch.manual_seed(0)
    data = [{"images": seeded(2, 3, 8, 8) + number, "regions": regions(12, 2)} for number in range(4)]
    result = ds.prune(Regions().eval(), data, parameters=0.6)

    assert result.report.deviation is not None
    assert (result.report.deviation.samples, result.report.deviation.checked) == (48, 12)
    with pytest.raises(BatchError, match="the batches differ"):
        ds.prune(Regions().eval(), [data[0], {**data[1], "images": seeded(3, 3, 8, 8)}], macs=0.5)
