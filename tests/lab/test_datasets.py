"""Readers of NYU-v2, Cityscapes and Taskonomy, on small files in the layouts of the published sets."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from disparse_structured.errors import BatchError, DataError, TaskError
from disparse_structured.lab import datasets as sets
from disparse_structured.lab.datasets import Samples, TaskSpec
from disparse_structured.lab.datasets.fields import IMAGE_MEAN, IMAGE_STD, ClassLabels, DepthMap, Field
from disparse_structured.lab.metrics import Depth as DepthMetric
from disparse_structured.lab.metrics import Normals, Segmentation

SIZE = (6, 8)
RNG = np.random.default_rng(0)


def npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photograph() -> np.ndarray:
    return RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def labels(*values: int) -> np.ndarray:
    """``[H, W]`` that starts with ``values``, else 0."""
    array = np.zeros(SIZE, np.int64)
    array.flat[: len(values)] = values
    return array


def normalized(rgb: np.ndarray) -> Tensor:
    """By hand: ``[H, W, 3]`` in 0..1 to the network's input."""
    return torch.from_numpy(np.moveaxis((rgb - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD), -1, 0)).float()


# NYU-v2


@pytest.fixture
def mtan_nyuv2(tmp_path: Path) -> Path:
    for split, count in {"train": 11, "val": 2}.items():
        for number in range(count):
            base = tmp_path / split
            npy(base / f"image/{number}.npy", photograph() / 255.0)
            npy(base / f"label/{number}.npy", labels(-1, 12, number % 13).astype(np.float32))
            npy(base / f"depth/{number}.npy", np.full((*SIZE, 1), number, np.float32))
            normals = np.tile(np.float32([0.0, -3.0, 4.0]) / 5, (*SIZE, 1))
            normals[0, 0] = 0
            npy(base / f"normal/{number}.npy", normals)
    return tmp_path


def test_nyuv2_of_mtan(mtan_nyuv2: Path) -> None:
    samples = sets.nyuv2_mtan(mtan_nyuv2, "train")
    sample = samples[10]

    assert len(samples) == 11
    assert len(sets.nyuv2_mtan(mtan_nyuv2, "val")) == 2
    assert {name: (tuple(x.shape), x.dtype) for name, x in sample.items()} == {
        "image": ((3, *SIZE), torch.float32),
        "segmentation": (SIZE, torch.int64),
        "normals": ((3, *SIZE), torch.float32),
        "depth": ((1, *SIZE), torch.float32),
    }
    assert sample["segmentation"].flatten()[:4].tolist() == [255, 12, 10, 0]
    assert sample["depth"].unique().tolist() == [10.0], "samples are in the order of their numbers"
    assert not samples[0]["depth"].any(), "0 is unknown, and stays 0"
    assert sample["normals"][:, 0, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(sample["normals"][:, 0, 1], torch.tensor([0.0, -0.6, 0.8]))
    torch.testing.assert_close(sample["image"], normalized(np.load(mtan_nyuv2 / "train/image/10.npy")))


def test_only_the_tasks_that_are_asked_for_are_read(mtan_nyuv2: Path) -> None:
    for path in (mtan_nyuv2 / "val/normal").iterdir():
        path.unlink()
    sample = sets.nyuv2_mtan(mtan_nyuv2, "val", tasks=["depth"])[0]
    assert list(sample) == ["image", "depth"]
    with pytest.raises(ValueError, match=r"tasks is \['edges'\]; choose a list from \['segmentation', 'n"):
        sets.nyuv2_mtan(mtan_nyuv2, "val", tasks=["edges"])
    with pytest.raises(ValueError, match="tasks is 'depth'; choose a list"):
        sets.nyuv2_mtan(mtan_nyuv2, "val", tasks="depth")


@pytest.fixture
def adashare_nyuv2(tmp_path: Path) -> Path:
    png(tmp_path / "img/0001.png", photograph())
    png(tmp_path / "seg/0001.png", labels(39, 255).astype(np.uint8))
    normals = np.full((*SIZE, 3), 127, np.uint8)
    normals[..., 0] = 254  # to the right
    normals[0, 0] = (255, 10, 10)
    png(tmp_path / "normal_mask/0001.png", normals)
    npy(tmp_path / "depth/0001.npy", np.full(SIZE, 2.5))
    row = ["img/0001.png", "seg/0001.png", "normal_mask/0001.png", "depth/0001.npy"]
    (tmp_path / "nyu_v2_3task.json").write_text(json.dumps({"train": [row], "test": [row, row]}))
    return tmp_path


def test_nyuv2_of_adashare(adashare_nyuv2: Path) -> None:
    samples = sets.nyuv2_adashare(adashare_nyuv2, "test")
    sample = samples[1]
    assert len(samples) == 2
    assert sample["segmentation"].flatten()[:3].tolist() == [39, 255, 0]
    assert sample["depth"].unique().tolist() == [2.5]
    assert sample["normals"][:, 0, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(sample["normals"][:, 1, 1], torch.tensor([1.0, 0.0, 0.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(
        sample["image"], normalized(np.asarray(Image.open(adashare_nyuv2 / "img/0001.png")) / 255)
    )


def test_normals_as_the_two_papers_take_them(adashare_nyuv2: Path) -> None:
    samples = sets.nyuv2_adashare(adashare_nyuv2, "train", centered=False, flip=True)
    expected = torch.tensor([254.0, 127, 127]) / math.sqrt(254**2 + 2 * 127**2)
    for _ in range(8):  # mirrored or not
        torch.testing.assert_close(samples[0]["normals"][:, 3, 3], expected)


# Cityscapes

# From the table of cityscapesScripts: id -> (train id, category - 1); ids that are ignored are left out.
CITYSCAPES = {
    **{7: (0, 0), 8: (1, 0), 11: (2, 1), 12: (3, 1), 13: (4, 1), 17: (5, 2), 19: (6, 2), 20: (7, 2)},
    **{21: (8, 3), 22: (9, 3), 23: (10, 4), 24: (11, 5), 25: (12, 5), 26: (13, 6), 27: (14, 6)},
    **{28: (15, 6), 31: (16, 6), 32: (17, 6), 33: (18, 6)},
}


@pytest.fixture
def original_cityscapes(tmp_path: Path) -> Path:
    for city, frame in (("bremen", "bremen_000001_000019"), ("aachen", "aachen_000000_000019")):
        png(tmp_path / f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png", photograph())
        base = tmp_path / f"gtFine/train/{city}"
        png(base / f"{frame}_gtFine_labelIds.png", labels(*range(34), 255).astype(np.uint8))
        png(base / f"{frame}_gtFine_color.png", photograph())
        disparity = labels(0, 1, 257, 256 * 126 + 1).astype(np.uint16)
        png(tmp_path / f"disparity/train/{city}/{frame}_disparity.png", disparity)
    return tmp_path


@pytest.mark.parametrize(("classes", "column"), [(19, 0), (7, 1)])
def test_cityscapes_as_published(original_cityscapes: Path, classes: int, column: int) -> None:
    samples = sets.cityscapes(original_cityscapes, "train", classes=classes)
    sample = samples[0]
    assert len(samples) == 2
    assert "aachen" in str(samples.files[0]["image"])
    expected = [CITYSCAPES[n][column] if n in CITYSCAPES else 255 for n in range(34)]
    assert sample["segmentation"].flatten()[:35].tolist() == [*expected, 255]
    assert sample["depth"].flatten()[:4].tolist() == [0, 0, 1, 126]
    assert sample["depth"].shape == (1, *SIZE)


@pytest.mark.parametrize("folder", ["label_7", "label"])
def test_cityscapes_of_mtan(folder: str, tmp_path: Path) -> None:
    for number in range(2):
        npy(tmp_path / f"val/image/{number}.npy", photograph() / 255.0)
        npy(tmp_path / f"val/{folder}/{number}.npy", labels(-1, 6).astype(np.float64))
        npy(tmp_path / f"val/depth/{number}.npy", np.linspace(0, 0.47, 48).reshape(*SIZE, 1))
    sample = sets.cityscapes_mtan(tmp_path, "val")[1]
    assert sample["segmentation"].flatten()[:3].tolist() == [255, 6, 0]
    assert sample["depth"].flatten()[[0, 1, 47]].tolist() == pytest.approx([0.0, 0.01, 0.47])
    with pytest.raises(ValueError, match="classes is 8; there are labels of 2, 7, 19 classes"):
        sets.cityscapes_mtan(tmp_path, "val", classes=8)


def test_cityscapes_of_adashare(tmp_path: Path) -> None:
    npy(tmp_path / "image/0.npy", photograph() / 255.0)
    depth = np.full((*SIZE, 1), 0.2)
    depth[0, 0] = 2e-5
    npy(tmp_path / "depth/0.npy", depth)
    for classes in (2, 7, 19):
        npy(tmp_path / f"label_{classes}/0.npy", labels(classes - 1, -1))
    row = [f"{name}/0.npy" for name in ("image", "depth", "label_2", "label_7", "label_19")]
    (tmp_path / "cityscape.json").write_text(json.dumps({"train": [row]}))
    for classes in (2, 7, 19):
        sample = sets.cityscapes_adashare(tmp_path, "train", classes=classes)[0]
        assert sample["segmentation"].flatten()[:2].tolist() == [classes - 1, 255]
    assert sample["depth"].flatten()[:2].tolist() == pytest.approx([0.0, 0.2])


# Taskonomy

DOMAINS = {
    "rgb": "rgb",
    "segment_semantic": "segmentsemantic",
    "normal": "normal",
    "depth_euclidean": "depth_euclidean",
    "depth_zbuffer": "depth_zbuffer",
    "keypoints2d": "keypoints2d",
    "edge_texture": "edge_texture",
}
PLACES = {
    "Taskonomy": "{domain}/{building}",
    "Omnidata": "{domain}/taskonomy/{building}",
    "one folder a building": "{building}/{domain}",
}


def building(root: Path, name: str, place: str = PLACES["Taskonomy"], views: int = 2) -> None:
    normals = np.full((*SIZE, 3), 127, np.uint8)
    normals[1:, :, 2] = 255
    truth = {
        "rgb": photograph(),
        "segment_semantic": labels(0, 1, 2, 17).astype(np.uint8),
        "normal": normals,
        "depth_euclidean": labels(1024, 0, 64499, 64500, 65535).astype(np.uint16),
        "depth_zbuffer": labels(512).astype(np.uint16),
        "keypoints2d": labels(0, 163, 328, 65535).astype(np.uint16),
        "edge_texture": labels(0, 2621, 5243, 65535).astype(np.uint16),
    }
    for domain, array in truth.items():
        for view in range(views):
            base = root / place.format(domain=domain, building=name)
            png(base / f"point_{view + 9}_view_0_domain_{DOMAINS[domain]}.png", array)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_taskonomy(place: str, tmp_path: Path) -> None:
    for name in ("hanson", "merom"):
        building(tmp_path, name, place)
    samples = sets.taskonomy(tmp_path, ["merom", "hanson"], size=None)
    sample = samples[3]

    assert len(samples) == 4
    assert [path["image"].name.split("_")[1] for path in samples.files] == ["9", "10"] * 2
    assert "hanson" in str(samples.files[0]["image"])
    assert sample["segmentation"].flatten()[:4].tolist() == [255, 0, 1, 16]
    assert sample["normals"][:, 0].abs().sum() == 0, "gray is no normal"
    torch.testing.assert_close(sample["normals"][:, 1, 0], torch.tensor([0.0, 0.0, 1.0]), atol=0.01, rtol=0)
    assert sample["depth"].flatten()[:5].tolist() == pytest.approx([2.0, 0.0, 64499 / 512, 0.0, 0.0])
    for task in ("keypoints", "edges"):
        assert sample[task].flatten()[:4].tolist() == pytest.approx([-1, 0, 1, 1], abs=0.01)
    assert {name: tuple(x.shape) for name, x in samples[0].items() if name not in ("image", "normals")} == {
        "segmentation": SIZE,
        "depth": (1, *SIZE),
        "keypoints": (1, *SIZE),
        "edges": (1, *SIZE),
    }


def test_taskonomys_two_depths_and_its_logarithm(tmp_path: Path) -> None:
    building(tmp_path, "hanson")
    straight = sets.taskonomy(tmp_path, ["hanson"], tasks=["depth"], depth="zbuffer", size=None)[0]
    logarithm = sets.taskonomy(tmp_path, ["hanson"], tasks=["depth"], log_depth=True, size=None)[0]
    assert straight["depth"].max() == 1
    expected = [math.log(1025) / math.log(65536), 0, math.log(64500) / math.log(65536), 0, 0]
    assert logarithm["depth"].flatten()[:5].tolist() == pytest.approx(expected)


def test_views_without_all_their_files(tmp_path: Path) -> None:
    building(tmp_path, "hanson", views=3)
    (tmp_path / "normal/hanson/point_10_view_0_domain_normal.png").unlink()
    with pytest.raises(DataError, match=r"point_10_view_0.* 'normals': found 3 of image, .* 2 of normals"):
        sets.taskonomy(tmp_path, ["hanson"])
    left = sets.taskonomy(tmp_path, ["hanson"], skip_incomplete=True)
    assert [path["image"].name.split("_")[1] for path in left.files] == ["9", "11"]
    assert len(sets.taskonomy(tmp_path, ["hanson"], tasks=["depth", "edges"])) == 3


def test_taskonomy_of_adashare(tmp_path: Path) -> None:
    building(tmp_path, "hanson", PLACES["one folder a building"])
    building(tmp_path, "merom", PLACES["Omnidata"])
    domains = ["rgb", "segment_semantic", "normal", "depth_zbuffer", "keypoints2d", "edge_texture"]
    rows = [
        [f"{name}/{domain}/point_9_view_0_domain_{DOMAINS[domain]}.png" for domain in domains]
        for name in ("hanson", "merom")
    ]
    (tmp_path / "taskonomy.json").write_text(json.dumps({"train": rows}))
    samples = sets.taskonomy_adashare(tmp_path, "train", size=(12, 16))
    assert len(samples) == 2
    for sample in samples:
        assert sample["depth"].max() == 1
        assert all(x.shape[-2:] == (12, 16) for x in sample.values())


def test_the_tiny_split_is_the_published_one() -> None:
    assert {split: len(names) for split, names in sets.TINY.items()} == {"train": 25, "val": 5, "test": 5}
    assert len({name for names in sets.TINY.values() for name in names}) == 35


# Resizing and mirroring


def samples_of(tmp_path: Path, size: tuple[int, int] | None = None, flip: bool = False) -> Samples:
    for split in ("train", "val"):
        for number in range(4):
            base = tmp_path / split
            npy(base / f"image/{number}.npy", photograph() / 255.0)
            npy(base / f"label/{number}.npy", RNG.integers(-1, 13, SIZE))
            npy(base / f"depth/{number}.npy", RNG.integers(0, 4, (*SIZE, 1)).astype(np.float32))
            npy(base / f"normal/{number}.npy", RNG.standard_normal((*SIZE, 3)))
    return sets.nyuv2_mtan(tmp_path, "train", size=size, flip=flip)


@pytest.mark.parametrize("size", [(3, 4), (12, 16), (9, 12)])
def test_resizing_mixes_no_classes_and_no_depths(size: tuple[int, int], tmp_path: Path) -> None:
    plain = samples_of(tmp_path)
    resized = sets.nyuv2_mtan(tmp_path, "train", size=size)
    for before, after in zip(plain, resized, strict=True):
        assert all(x.shape[-2:] == size for x in after.values())
        for name in ("segmentation", "depth"):
            assert set(after[name].unique().tolist()) <= set(before[name].unique().tolist())
        length = after["normals"].norm(dim=0)
        torch.testing.assert_close(length, torch.ones(size))
        torch.testing.assert_close(after["image"].mean(), before["image"].mean(), atol=0.1, rtol=0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_enlarging_repeats_pixels_and_reducing_takes_them_back(height: int, width: int, times: int) -> None:
    field: Field = ClassLabels(100)
    x = torch.arange(height * width).view(height, width)
    large = field.resize(x, (height * times, width * times))
    assert torch.equal(large, x.repeat_interleave(times, 0).repeat_interleave(times, 1))
    assert torch.equal(field.resize(large, (height, width)), x)
    thirds = torch.arange(9 * height * width).view(3 * height, 3 * width)
    assert torch.equal(field.resize(thirds, (height, width)), thirds[1::3, 1::3]), "the middle of each area"


def test_mirroring_turns_everything_and_the_normals_x(tmp_path: Path) -> None:
    plain = samples_of(tmp_path)
    mirroring = sets.nyuv2_mtan(tmp_path, "train", flip=True)
    torch.manual_seed(0)
    mirrored = 0
    for _ in range(8):
        for before, after in zip(plain, mirroring, strict=True):
            if torch.equal(before["image"], after["image"]):
                assert all(torch.equal(before[name], after[name]) for name in before)
                continue
            mirrored += 1
            for name in ("image", "segmentation", "depth"):
                assert torch.equal(after[name], before[name].flip(-1))
            x, y, z = before["normals"].flip(-1)
            assert torch.equal(after["normals"], torch.stack((-x, y, z)))
    assert 8 <= mirrored <= 24, "about half of 32"


def test_mirroring_follows_torchs_random_state(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, flip=True)

    def epoch() -> Tensor:
        torch.manual_seed(3)
        return torch.stack([sample["image"] for sample in samples])

    assert torch.equal(epoch(), epoch())


def test_samples_make_batches(tmp_path: Path) -> None:
    batch = next(iter(DataLoader(samples_of(tmp_path, (3, 4), flip=True), batch_size=4, num_workers=0)))
    assert {name: tuple(x.shape) for name, x in batch.items()} == {
        "image": (4, 3, 3, 4),
        "segmentation": (4, 3, 4),
        "normals": (4, 3, 3, 4),
        "depth": (4, 1, 3, 4),
    }


# What is not as it should be


def test_a_missing_folder_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"test.image is not a folder\. The layout is <root>/<train\|val>/\{image"
    ):
        sets.nyuv2_mtan(tmp_path, "test")
    with pytest.raises(DataError, match=r"leftImg8bit.val is not a folder.*<city>/<frame>"):
        sets.cityscapes(tmp_path, "val")
    with pytest.raises(DataError, match=r"val is not a folder.*label_<classes>"):
        sets.cityscapes_mtan(tmp_path, "val")
    with pytest.raises(
        DataError, match=r"rgb.hanson is not a folder.*<domain>/taskonomy/<building>.*edge_texture"
    ):
        sets.taskonomy(tmp_path, ["hanson"])
    with pytest.raises(ValueError, match=r"buildings is 'hanson'; name a list"):
        sets.taskonomy(tmp_path, "hanson")


def test_folders_of_unequal_files_are_refused(mtan_nyuv2: Path) -> None:
    (mtan_nyuv2 / "train/depth/3.npy").unlink()
    with pytest.raises(
        DataError, match=r"3\.npy has no counterpart for 'depth': found 11 of image, .*10 of d"
    ):
        sets.nyuv2_mtan(mtan_nyuv2, "train")
    (mtan_nyuv2 / "val/image/0.npy").unlink()
    with pytest.raises(DataError, match=r"label.0\.npy has no counterpart for 'image'"):
        sets.nyuv2_mtan(mtan_nyuv2, "val")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    for name in ("image", "label", "depth", "normal"):
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no sample was found"):
        sets.nyuv2_mtan(tmp_path, "train")


BROKEN: dict[str, tuple[str, np.ndarray, str]] = {
    "channels first": (
        "image",
        np.zeros((3, *SIZE)),
        r"image.0\.npy has shape \(3, 6, 8\); expected \[H, W, 3\]",
    ),
    "0..255 as floats": (
        "image",
        np.full((*SIZE, 3), 200.0),
        r"float64 from 200\.0 to 200\.0; expected an RGB",
    ),
    "not a number": ("image", np.full((*SIZE, 3), math.nan), "float64 from nan to nan"),
    "labels with channels": ("label", np.zeros((*SIZE, 3)), r"shape \(6, 8, 3\); expected labels \[H, W\]"),
    "40 classes": ("label", np.full(SIZE, 39), r"labels from 39 to 39; expected 0 to 12, and -1 or 255"),
    "labels between classes": ("label", np.full(SIZE, 0.5), "values that are not integers"),
    "depth of another size": (
        "depth",
        np.ones((3, 4, 1)),
        r"depth.0\.npy is 3 x 4 pixels, .* 6 x 8.*the same size",
    ),
    "flat normals": ("normal", np.ones(SIZE), r"normal.0\.npy has shape \(6, 8\); expected \[H, W, 3\]"),
    "words": ("depth", np.full((*SIZE, 1), "far"), r"depth.0\.npy holds <U3; expected numbers"),
}


@pytest.mark.parametrize(("folder", "array", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_of_another_kind_is_named(
    folder: str, array: np.ndarray, message: str, mtan_nyuv2: Path
) -> None:
    npy(mtan_nyuv2 / f"val/{folder}/0.npy", array)
    samples = sets.nyuv2_mtan(mtan_nyuv2, "val")
    with pytest.raises(DataError, match=message):
        samples[0]
    assert samples[1]


def test_sizes_may_differ_when_all_are_resized_but_not_their_aspect(mtan_nyuv2: Path) -> None:
    npy(mtan_nyuv2 / "val/depth/0.npy", np.ones((3, 4, 1)))
    npy(mtan_nyuv2 / "val/depth/1.npy", np.ones((4, 4, 1)))
    samples = sets.nyuv2_mtan(mtan_nyuv2, "val", size=(6, 8))
    assert samples[0]["depth"].shape == (1, 6, 8)
    with pytest.raises(DataError, match=r"depth.1\.npy is 4 x 4 pixels, .*the same aspect ratio"):
        samples[1]


def test_damaged_and_vanished_files_are_named(adashare_nyuv2: Path) -> None:
    samples = sets.nyuv2_adashare(adashare_nyuv2, "train")
    (adashare_nyuv2 / "depth/0001.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"0001\.npy cannot be read as an array .*Fetch it again"):
        samples[0]
    (adashare_nyuv2 / "img/0001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0001\.png cannot be read as a picture"):
        samples[0]
    (adashare_nyuv2 / "img/0001.png").unlink()
    with pytest.raises(DataError, match=r"0001\.png does not exist.*tasks="):
        samples[0]
    with pytest.raises(IndexError, match="sample 1 of 1"):
        samples[1]


def test_a_damaged_picture_is_named_although_ultralytics_patches_pillow(
    adashare_nyuv2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    importlib.import_module("ultralytics.utils.patches")
    (adashare_nyuv2 / "img/0001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0001\.png cannot be read as a picture \(UnidentifiedImageError"):
        sets.nyuv2_adashare(adashare_nyuv2, "train")[0]


def test_pickled_arrays_are_not_loaded(mtan_nyuv2: Path) -> None:
    np.save(mtan_nyuv2 / "val/depth/0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(
        DataError, match=r"depth.0\.npy cannot be read as an array \(ValueError.*allow_pickle"
    ):
        sets.nyuv2_mtan(mtan_nyuv2, "val")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot be read as JSON \(FileNotFoundError.*rows of paths \[image, segmentation"),
        ("{", "cannot be read as JSON"),
        ("[]", "no sample of the split 'train'; it has list"),
        ('{"test": []}', r"no sample of the split 'train'; it has \['test'\]"),
        ('{"train": [["a", "b"]]}', r"row 0 is \['a', 'b'\]; expected the 4 paths"),
    ],
)
def test_a_bad_index_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "nyu_v2_3task.json").write_text(text)
    with pytest.raises(DataError, match=message):
        sets.nyuv2_adashare(tmp_path, "train")


def test_a_path_of_the_taskonomy_index_has_three_parts(tmp_path: Path) -> None:
    (tmp_path / "taskonomy.json").write_text(json.dumps({"train": [["a.png"] * 6]}))
    with pytest.raises(DataError, match=r"names 'a\.png'; expected <building>/<domain>/<file>"):
        sets.taskonomy_adashare(tmp_path, "train")


def test_a_size_below_one_pixel_is_refused(mtan_nyuv2: Path) -> None:
    with pytest.raises(ValueError, match=r"size is \(H, W\) = \(0, 8\)"):
        sets.nyuv2_mtan(mtan_nyuv2, "val", size=(0, 8))


def test_depths_that_are_no_depths_are_unknown() -> None:
    values = np.array([[math.nan, math.inf, -1.0, 0.0, 2.0, 9.0]])
    assert DepthMap(unknown=9.0).decode(values, Path("x")).tolist() == [[[0, 0, 0, 0, 2, 0]]]


# Descriptions of the tasks


class Guess(nn.Module):
    """Answers every task from the image by one layer."""

    def __init__(self, specs: dict[str, TaskSpec]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.heads = nn.ModuleDict({name: nn.Conv2d(3, spec.outputs, 1) for name, spec in specs.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        image = self.norm(image)
        return {name: head(image) for name, head in self.heads.items()}


def test_published_weights_and_widths() -> None:
    def weights(specs: dict[str, TaskSpec]) -> dict[str, float]:
        return {name: spec.weight for name, spec in specs.items()}

    assert weights(sets.nyuv2_tasks(depth=False)) == {"segmentation": 1, "normals": 20}
    assert weights(sets.nyuv2_tasks()) == {"segmentation": 1, "normals": 20, "depth": 3}
    assert weights(sets.cityscapes_tasks()) == {"segmentation": 1, "depth": 20}
    five = {"segmentation": 1, "normals": 3, "depth": 2, "keypoints": 7, "edges": 7}
    assert weights(sets.taskonomy_tasks()) == five
    assert [spec.outputs for spec in sets.taskonomy_tasks().values()] == [17, 3, 1, 1, 1]
    assert sets.nyuv2_tasks(13)["segmentation"].outputs == 13


def nyuv2(root: Path) -> tuple[Samples, dict[str, TaskSpec]]:
    return samples_of(root), sets.nyuv2_tasks(13)


def original(root: Path) -> tuple[Samples, dict[str, TaskSpec]]:
    png(root / "leftImg8bit/val/ulm/ulm_0_0_leftImg8bit.png", photograph())
    png(root / "gtFine/val/ulm/ulm_0_0_gtFine_labelIds.png", labels(*range(34)).astype(np.uint8))
    png(root / "disparity/val/ulm/ulm_0_0_disparity.png", labels(*range(300, 340)).astype(np.uint16))
    return sets.cityscapes(root, "val"), sets.cityscapes_tasks()


def five(root: Path) -> tuple[Samples, dict[str, TaskSpec]]:
    building(root, "ihlen")
    return sets.taskonomy(root, ["ihlen"], size=None), sets.taskonomy_tasks()


@pytest.mark.parametrize("make", [nyuv2, original, five])
def test_tasks_train_and_are_measured_on_what_the_readers_give(
    make: Callable[[Path], tuple[Samples, dict[str, TaskSpec]]], tmp_path: Path
) -> None:
    samples, specs = make(tmp_path)
    model = Guess(specs)
    loader = DataLoader(samples, batch_size=2)
    batch = next(iter(loader))
    output = model(batch["image"])
    for task in sets.dataset_tasks(specs):
        assert task.loss is not None
        loss = task.loss(task.pick(output), batch)
        assert loss.item() > 0
        loss.backward(retain_graph=True)
        gradient = model.heads[task.name].weight.grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()
    figures = sets.evaluate(model, loader, specs)
    for name, spec in specs.items():
        assert math.isfinite(figures[name][spec.headline])


def test_evaluation_is_that_of_the_metrics_and_leaves_the_model_alone(tmp_path: Path) -> None:
    samples, specs = nyuv2(tmp_path)
    model = Guess(specs)
    model.heads["depth"].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    figures = sets.evaluate(model, DataLoader(samples, batch_size=3), specs)

    assert model.training
    assert not model.heads["depth"].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    whole = next(iter(DataLoader(samples, batch_size=4)))
    with torch.no_grad():
        output = model.eval()(whole["image"])
    for name, metric in {
        "segmentation": Segmentation(13),
        "normals": Normals(),
        "depth": DepthMetric(),
    }.items():
        metric.update(output[name], whole[name])
        assert figures[name] == pytest.approx(metric.compute())


def test_the_model_is_called_in_its_own_precision(tmp_path: Path) -> None:
    samples, specs = nyuv2(tmp_path)
    loader = DataLoader(samples, batch_size=4)
    single = sets.evaluate(Guess(specs), loader, specs)
    double = sets.evaluate(Guess(specs).double(), loader, specs)
    assert double["depth"] == pytest.approx(single["depth"], rel=1e-3)


def test_figure_of_merit_by_hand() -> None:
    specs = sets.nyuv2_tasks()
    dense = {"segmentation": {"miou": 0.4}, "normals": {"mean_angle": 20.0}, "depth": {"abs_error": 0.5}}
    pruned = {"segmentation": {"miou": 0.3}, "normals": {"mean_angle": 15.0}, "depth": {"abs_error": 0.55}}
    # -25 %, +25 %, -10 %.
    assert sets.figure_of_merit(dense, pruned, specs) == pytest.approx(-10 / 3)
    with pytest.raises(TaskError, match="Name the same tasks"):
        sets.figure_of_merit(dense, {"depth": {"abs_error": 1.0}}, specs)


def test_weights_are_overridable() -> None:
    specs = sets.nyuv2_tasks()
    assert [task.weight for task in sets.dataset_tasks(specs)] == [1, 20, 3]
    assert [task.weight for task in sets.dataset_tasks(specs, {"normals": 5.0})] == [1, 5, 3]
    with pytest.raises(
        TaskError, match=r"weights are given for \['seg'\], but the tasks are \['segmentation'"
    ):
        sets.dataset_tasks(specs, {"seg": 2.0})


def test_class_weights_reach_the_loss() -> None:
    prior = torch.linspace(0.5, 2, 17)
    loss = sets.taskonomy_tasks(prior)["segmentation"].loss
    output, target = torch.randn(2, 17, 4, 4), torch.randint(0, 17, (2, 4, 4))
    target[0] = 255
    expected = nn.functional.cross_entropy(output, target, prior, ignore_index=255)
    torch.testing.assert_close(loss(output, target), expected)
    assert loss(output, torch.full((2, 4, 4), 255)).item() == 0
    with pytest.raises(TaskError, match=r"class_weights has shape \(3,\); expected \(17,\)"):
        sets.taskonomy_tasks(torch.ones(3))


def test_a_batch_without_the_target_is_refused() -> None:
    specs = {"depth": sets.nyuv2_tasks()["depth"]}
    with pytest.raises(
        TaskError, match=r"'depth': the batch has no target of that name, but the keys \['image'\]"
    ):
        sets.evaluate(Guess(specs), [{"image": torch.zeros(1, 3, 2, 2)}], specs)
    (task,) = sets.dataset_tasks(specs)
    assert task.loss is not None
    with pytest.raises(TaskError, match=r"but a list\. Yield dicts"):
        task.loss(torch.zeros(1), [])
    with pytest.raises(BatchError, match="yields no batch"):
        sets.evaluate(Guess(specs), [], specs)
