"""The readers of the data packs: on small files in the packs' layout, and on the packs where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import nyuv2 as benchmark
from benchmarks.data import (
    CARD_TASKS,
    MEAN,
    STD,
    VARIABLE,
    Batch,
    DataError,
    DataMissing,
    Loader,
    Samples,
    cards,
    data_folder,
    flip,
    nyuv2,
)

H, W = 8, 12


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both packs with a handful of random samples, in the packs' own names, shapes and dtypes."""
    rng = np.random.default_rng(0)
    (tmp_path / "nyuv2").mkdir()
    (tmp_path / "setcards").mkdir()
    np.savez(tmp_path / "nyuv2" / "train.npz", **nyu_arrays(rng))
    labels = {name: rng.integers(0, 3, 9).astype(np.uint8) for name in CARD_TASKS}
    np.savez(
        tmp_path / "setcards" / "setcards.npz",
        rgb=rng.integers(0, 256, (9, 3, 64, 40)).astype(np.uint8),
        split=np.array([0, 1, 2, 3, 0, 0, 0, 2, 3], np.uint8),
        photo_id=np.arange(9, dtype=np.int16),
        **labels,
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def nyu_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    count = 5
    return {
        "rgb": rng.integers(0, 256, (count, 3, H, W)).astype(np.uint8),
        "seg13": rng.choice([0, 3, 12, 255], (count, H, W)).astype(np.uint8),
        "depth": rng.uniform(0.7, 9.9, (count, H, W)).astype(np.float16),
        "normals": rng.integers(-31, 32, (count, 3, H, W)).astype(np.int8),
        "edges": (rng.random((count, H, W)) < 0.1).astype(np.uint8),
        "is_val": np.array([False, True, False, False, True]),
    }


def raw(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "nyuv2" / "train.npz") as file:
        return dict(file)


def rewrite(folder: Path, **changes: np.ndarray) -> None:
    np.savez(folder / "nyuv2" / "train.npz", **(raw(folder) | changes))


def test_at_the_packs_own_size_nothing_is_resampled(folder: Path) -> None:
    arrays = raw(folder)
    rows = [0, 2, 3]
    samples = nyuv2("train", (H, W)).tensors

    assert {name: (values.dtype, tuple(values.shape)) for name, values in samples.items()} == {
        "image": (torch.float32, (3, 3, H, W)),
        "seg13": (torch.int64, (3, H, W)),
        "depth": (torch.float32, (3, 1, H, W)),
        "normals": (torch.float32, (3, 3, H, W)),
        "edges": (torch.float32, (3, 1, H, W)),
    }
    pixels = samples["image"] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    np.testing.assert_allclose(pixels.numpy() * 255, arrays["rgb"][rows], atol=1e-3)
    np.testing.assert_array_equal(samples["seg13"], arrays["seg13"][rows])
    np.testing.assert_allclose(samples["depth"][:, 0], arrays["depth"][rows].astype(np.float32))
    np.testing.assert_array_equal(samples["edges"][:, 0], arrays["edges"][rows])
    vectors = arrays["normals"][rows].astype(np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(samples["normals"], vectors / np.where(length > 0, length, 1), atol=1e-5)


def test_the_splits_part_the_samples(folder: Path) -> None:
    train, val = nyuv2("train", (H, W)), nyuv2("val", (H, W))
    assert (len(train), len(val)) == (3, 2)
    both = torch.cat([train.tensors["image"], val.tensors["image"]]).flatten(1)
    assert len(both.unique(dim=0)) == 5


def test_each_kind_is_shrunk_in_its_own_way(folder: Path) -> None:
    depth = np.full((5, H, W), 2, np.float16)
    depth[0, 0, :2], depth[0, 1, :2] = 4, 0  # unknown pixels do not count
    depth[0, :2, 2:4] = 0  # an area without any depth
    normals = np.zeros((5, 3, H, W), np.int8)
    normals[0, 2, 0, 0], normals[0, 0, 1, 1] = -31, 20  # lengths do not weigh; the other two are unknown
    normals[0, 0, 0, 2:4] = 31, -31  # these cancel out
    edges = np.zeros((5, H, W), np.uint8)
    edges[0, 1, 1] = 1
    seg13 = np.full((5, H, W), 255, np.uint8)
    seg13[0, :2, :2] = [[1, 2], [3, 4]]
    rewrite(folder, depth=depth, normals=normals, edges=edges, seg13=seg13)
    small = nyuv2("train", (H // 2, W // 2))[:1]

    assert small["depth"][0, 0, 0, :3].tolist() == [4, 0, 2]
    expected = torch.tensor([0.5**0.5, 0, -(0.5**0.5)])
    torch.testing.assert_close(small["normals"][0, :, 0, 0], expected)
    assert small["normals"][0].flatten(1)[:, 1:].abs().max() == 0
    assert small["edges"][0, 0].flatten().tolist() == [1] + [0] * (H * W // 4 - 1)
    assert small["seg13"][0, 0, 0] in (1, 2, 3, 4)
    assert (small["seg13"][0].flatten()[1:] == 255).all()
    rgb = torch.from_numpy(raw(folder)["rgb"][0, :, :2, :2]).float().mean((1, 2)) / 255
    torch.testing.assert_close(small["image"][0, :, 0, 0], (rgb - torch.tensor(MEAN)) / torch.tensor(STD))


def test_a_size_that_does_not_divide_and_a_larger_one(folder: Path) -> None:
    for size in [(5, 7), (16, 36)]:
        sample = nyuv2("val", size)[:2]
        assert sample["seg13"].shape == (2, *size)
        assert set(sample["seg13"].unique().tolist()) <= {0, 3, 12, 255}
        assert sample["depth"].shape == (2, 1, *size)
        length = sample["normals"].norm(dim=1)
        assert (((length - 1).abs() < 1e-4) | (length == 0)).all()


def test_cards(folder: Path) -> None:
    counts = {split: len(cards(split)) for split in ("train", "val", "test", "shift")}
    assert counts == {"train": 4, "val": 1, "test": 2, "shift": 2}
    with np.load(folder / "setcards" / "setcards.npz") as file:
        rgb, colour = file["rgb"][[2, 7]], file["colour"][[2, 7]]
    test = cards("test").tensors
    assert list(test) == ["image", *CARD_TASKS]
    assert test["colour"].dtype == torch.int64
    np.testing.assert_array_equal(test["colour"], colour)
    pixels = test["image"] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    np.testing.assert_allclose(pixels.numpy() * 255, rgb, atol=1e-3)


def test_a_flip_mirrors_everything_together_and_turns_normals(folder: Path) -> None:
    batch = nyuv2("train", (H, W))[torch.tensor([0, 1, 2] * 8)]
    before = {name: values.clone() for name, values in batch.items()}
    flipped = flip(batch)

    def mirror(values: Tensor, name: str) -> Tensor:
        turned = values.flip(-1)
        return turned * torch.tensor([-1.0, 1, 1]).view(3, 1, 1) if name == "normals" else turned

    which = [not torch.equal(a, b) for a, b in zip(flipped["image"], before["image"], strict=True)]
    assert 4 <= sum(which) <= 20
    for name, values in flipped.items():
        for i, mirrored in enumerate(which):
            expected = mirror(before[name][i], name) if mirrored else before[name][i]
            assert torch.equal(values[i], expected), f"{name} of sample {i}"
        assert torch.equal(batch[name], before[name]), "the batch itself was changed"


def test_a_loader_gives_every_sample_once_an_epoch_in_a_new_order() -> None:
    loader = Loader(Samples({"x": torch.arange(10)}), batch_size=4, shuffle=True)

    def epoch() -> list[int]:
        return [int(value) for batch in loader for value in batch["x"]]

    torch.manual_seed(3)
    first, second = epoch(), epoch()
    torch.manual_seed(3)
    assert epoch() == first != second
    assert sorted(first) == sorted(second) == list(range(10))
    assert len(loader) == 3 == len(list(loader))
    plain = Loader(loader.samples, 4)
    assert [batch["x"].tolist() for batch in plain] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_loader_augments_batch_by_batch() -> None:
    def negate(batch: Batch) -> Batch:
        return {"x": -batch["x"]}

    samples = Samples({"x": torch.arange(3)})
    assert [batch["x"].tolist() for batch in Loader(samples, 2, augment=negate)] == [[0, -1], [-2]]


def test_missing_data_names_the_variable_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(DataMissing, match=r"DISPARSE_DATA to the folder that holds nyuv2/train.npz, .*seg13"):
        nyuv2("train")
    with pytest.raises(DataMissing, match=r"holds setcards/setcards.npz, .*colour"):
        cards("train")
    monkeypatch.delenv(VARIABLE)
    assert data_folder().parts[-2:] == ("shared", "data")
    assert data_folder().parents[1] == Path(__file__).resolve().parents[3]


def test_damaged_data_is_refused(folder: Path) -> None:
    path = folder / "nyuv2" / "train.npz"
    arrays = raw(folder)
    np.savez(path, **{name: values for name, values in arrays.items() if name != "depth"})
    with pytest.raises(DataError, match=r"train.npz holds the arrays .*'rgb'.*, but lacks depth"):
        nyuv2("train")
    np.savez(path, **(arrays | {"is_val": np.zeros(5, bool)}))
    with pytest.raises(DataError, match="no sample of the split 'val'"):
        nyuv2("val")
    np.savez(path, **(arrays | {"seg13": np.array([{"a": 1}] * 5)}))
    with pytest.raises(DataError, match=r"train.npz is not an .npz file of plain arrays"):
        nyuv2("train")
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"train.npz is not an .npz file of plain arrays"):
        nyuv2("train")


def test_wrong_arguments_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="split is 'test'; there are train, val"):
        nyuv2("test")
    with pytest.raises(ValueError, match="there are train, val, test, shift"):
        cards("dev")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        nyuv2("train", (0, 4))


def test_the_benchmark_runs_on_a_small_pack_and_trains_the_dense_network_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = folder / "cache", folder / "results" / "nyuv2.json"
    arguments = ["--quick", "--size", "32x32", "--macs", "0.5", "--methods", "stock-uniform"]
    arguments += ["--backbone", "test_resnet"]
    arguments += ["--out", str(out), "--cache", str(cache)]

    def run() -> dict[str, Any]:
        assert benchmark.main(arguments) == 0
        return json.loads(out.read_text(encoding="utf-8"))

    first = run()
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    assert run() == first, "a repeated run has the same figures"
    assert file.stat().st_mtime_ns == written
    assert {"cpu", "cores", "torch", "torch_threads"} <= first["machine"].keys()
    assert [(row["method"], row["stage"]) for row in first["rows"]] == [
        ("dense", "trained"),
        ("stock-uniform", "pruned"),
        ("stock-uniform", "fine-tuned"),
    ]
    dense, pruned, tuned = first["rows"]
    assert (dense["macs"], dense["delta_t"]) == (1, 0)
    assert 0.4 < pruned["macs"] == tuned["macs"] <= 0.5
    assert dense["figures"] != pruned["figures"] != tuned["figures"]
    printed = capsys.readouterr().out
    assert "stock-uniform" in printed
    assert f"{pruned['figures']['depth']['abs_error']:.3f}" in printed


def test_the_benchmark_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert benchmark.main(["--quick"]) == 1
    assert "Set the environment variable DISPARSE_DATA" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--size", "48by64"])
    assert "'48by64' is not HEIGHTxWIDTH, such as 48x64" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real_val() -> Samples:
    try:
        return nyuv2("val")
    except DataMissing as missing:
        pytest.skip(str(missing))


def test_the_real_nyuv2_pack(real_val: Samples) -> None:
    val = real_val.tensors
    assert {name: tuple(values.shape) for name, values in val.items()} == {
        "image": (97, 3, 48, 64),
        "seg13": (97, 48, 64),
        "depth": (97, 1, 48, 64),
        "normals": (97, 3, 48, 64),
        "edges": (97, 1, 48, 64),
    }
    assert set(val["seg13"].unique().tolist()) == {*range(13), 255}
    assert 0.7 < val["depth"].min() < 1.5 < 9 < val["depth"].max() < 10
    assert abs(val["image"].mean()) < 0.5
    assert 0.5 < val["image"].std() < 1.5
    # Floors (class 4) look up, which is -y, and walls (class 11) do not: the frame is the one described.
    up = -val["normals"][:, 1]
    assert up[val["seg13"] == 4].median() > 0.8
    assert up[val["seg13"] == 11].median().abs() < 0.2
    assert (val["normals"][:, 2] <= 0.2).float().mean() > 0.99, "normals point towards the camera"


def test_the_real_card_pack() -> None:
    try:
        splits = {split: cards(split) for split in ("train", "val", "test", "shift")}
    except DataMissing as missing:
        pytest.skip(str(missing))
    assert {split: len(samples) for split, samples in splits.items()} == {
        "train": 3240,
        "val": 486,
        "test": 972,
        "shift": 972,
    }
    for name in CARD_TASKS:
        assert splits["train"].tensors[name].unique().tolist() == [0, 1, 2]
