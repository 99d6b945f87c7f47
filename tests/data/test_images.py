"""Folders of pictures and videos as inputs: what is read, what a network sees, what is refused."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

import disparse_structured as ds
from disparse_structured.data import Preprocessing, images
from disparse_structured.errors import DataError, DisparseWarning, OptionError, SaveError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (height, width) in enumerate([(60, 90), (91, 53), (64, 64)]):
        picture(height, width, number).save(tmp_path / f"{number}.png")
    return tmp_path


def together(data: ds.data.Images) -> tuple[list[Path], torch.Tensor]:
    return [source.path for source in data.sources], torch.cat(list(data))


def test_pictures_of_all_formats_and_folders_below_are_read(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.JPEG", "deep/c.png", "deep/er/d.webp", "deep/e.bmp")):
        picture(20, 20, number).save(tmp_path / name)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("cat")

    data = images(tmp_path, 16, **PLAIN, batch=2)

    assert sorted(source.name for source in data.sources) == [
        *("a.jpg", "b.JPEG", "deep/c.png", "deep/e.bmp", "deep/er/d.webp"),
    ]
    assert [list(batch.shape) for batch in data] == [[2, 3, 16, 16], [2, 3, 16, 16], [1, 3, 16, 16]]
    assert len(data) == 3
    assert data.skipped == {}


def test_it_reads_the_same_again_and_the_order_follows_the_seed(folder: Path) -> None:
    data = images(folder, 16, **PLAIN)
    assert torch.equal(torch.cat(list(data)), torch.cat(list(data)))
    assert together(data)[0] == together(images(folder, 16, **PLAIN))[0]
    orders = {tuple(together(images(folder, 16, **PLAIN, seed=seed))[0]) for seed in range(8)}
    assert len(orders) > 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((24, 16, 3), dtype=np.uint8)
    pixels[:8, :8] = 255  # the corner that is at the top left as shown
    back = {  # from the picture as shown to the one that is stored
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(back(pixels))).save(tmp_path / "a.png", exif=exif)

    (batch,) = images(tmp_path, (24, 16), **PLAIN)

    assert torch.equal(batch[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 128, (128, 128, 128)),
        ("P", (10, 200, 30), (10, 200, 30)),
        ("RGBA", (10, 200, 30, 7), (10, 200, 30)),
        ("LA", (40, 0), (40, 40, 40)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str, value: object, expected: object) -> None:
    if mode == "P":
        Image.new("RGB", (16, 16), value).convert("P", palette=Image.Palette.ADAPTIVE).save(
            tmp_path / "a.png"
        )
    else:
        Image.new(mode, (16, 16), value).save(tmp_path / "a.png")

    (batch,) = images(tmp_path, 16, **PLAIN)

    assert (batch[0, :, 3, 5] * 255).round().int().tolist() == list(expected)


def test_one_mean_makes_gray_inputs(folder: Path) -> None:
    config = timm.get_pretrained_cfg("resnet18").to_dict()
    assert images(folder, mean=(0.5,), std=(0.25,), like=config).preprocessing.channels == 1
    (batch,) = images(folder, 16, (0.5,), (0.25,))
    assert list(batch.shape) == [3, 1, 16, 16]
    assert batch.min() >= -2
    assert batch.max() <= 2


def test_files_that_cannot_be_read_are_named_and_skipped(folder: Path) -> None:
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    data = images(folder, 16, **PLAIN)

    with pytest.warns(DisparseWarning, match="3 files were skipped") as said:
        batches = list(data)

    assert sum(map(len, batches)) == 3
    assert data.skipped.keys() == {"cut.png", "text.jpg", "empty.png"}
    assert "text.jpg (UnidentifiedImageError" in str(said[0].message)
    assert not any(str(folder) in why for why in data.skipped.values())
    assert data.facts()["inputs"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(data)  # said once


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf_8_can_be_written(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(b"no picture")
    data = images(folder, 16, **PLAIN)
    with pytest.warns(DisparseWarning):
        list(data)
    json.dumps(data.facts(), ensure_ascii=False).encode()


def test_a_folder_of_damaged_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.warns(DisparseWarning), pytest.raises(DataError, match=r"none of the 1 files.*a\.png"):
        list(images(tmp_path, 16, **PLAIN))
    with pytest.raises(DataError, match="none of the 1 files"):
        images(tmp_path, 16, **PLAIN).contact_sheet(tmp_path / "sheet.png")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet18", {}),
        ("vit_small_patch16_224", {"crop_mode": "squash"}),
        ("vit_small_patch16_224", {"crop_mode": "border", "crop_pct": 1.0}),
        ("mobilenetv2_100", {"interpolation": "bilinear", "input_size": (3, 96, 128)}),
    ],
)
def test_inputs_are_those_of_timm(folder: Path, name: str, changes: dict[str, object]) -> None:
    config = timm.get_pretrained_cfg(name).to_dict() | changes
    resolved = timm.data.resolve_data_config({}, pretrained_cfg=config)
    transform = timm.data.create_transform(**resolved)

    paths, found = together(images(folder, like=config))

    expected = torch.stack([transform(Image.open(path)) for path in paths])
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_backbone_of_a_larger_model_says_how(folder: Path) -> None:
    backbone = timm.create_model("test_resnet", pretrained=False, features_only=True)
    model = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(2, 2)})
    assert images(folder, like=model).preprocessing.size == (160, 160)
    assert images(folder, 32, like=model).preprocessing.size == (32, 32)
    assert images(folder, 32, like=model, resize="pad").preprocessing.resize == "pad"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTImageProcessor", {}),
        (
            "ViTImageProcessor",
            {"do_rescale": False, "do_normalize": False, "size": {"height": 32, "width": 48}},
        ),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 32}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 56}}),
        ("DeiTImageProcessor", {}),
        ("SegformerImageProcessor", {}),
        ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": 32}),
    ],
)
def test_inputs_are_those_of_hugging_face(folder: Path, kind: str, options: dict[str, object]) -> None:
    processor = (getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind))(**options)
    processor.save_pretrained(folder)
    for number, size in enumerate([(64, 96), (96, 64), (64, 64)]):  # odd remainders are cropped one pixel off
        picture(*size, number).save(folder / f"{number}.png")

    paths, found = together(images(folder, like=folder / "preprocessor_config.json"))

    expected = [processor(Image.open(path), return_tensors="np")["pixel_values"][0] for path in paths]
    assert np.allclose(found.numpy(), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"image_processor_type": "LevitImageProcessor", "size": 224},
            "LevitImageProcessor is not supported",
        ),
        ({"do_pad": True, "size": 224, "image_mean": [0, 0, 0]}, "do_pad is not supported"),
        ({"size": {"longest_edge": 800}, "image_mean": [0] * 3, "image_std": [1] * 3}, "longest_edge"),
        ({"do_resize": False, "size": 224, "image_mean": [0] * 3, "image_std": [1] * 3}, "does not resize"),
        ({"size": 224}, "KeyError: 'image_mean'"),
        ({"size": "large", "do_normalize": False}, "wrong kind"),
        ({"input_size": 3}, "wrong kind"),
        ({"input_size": [3, 8, 8], "mean": [0], "std": [1], "crop_mode": "odd"}, "crop mode 'odd'"),
        ({"other": 1}, "no 'input_size'"),
        ([], "no 'input_size'"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(
    folder: Path, content: object, said: str
) -> None:
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        images(folder, like=folder / "config.json")


def test_a_configuration_that_cannot_be_read_is_named(folder: Path) -> None:
    for name, text in (("torn.json", "{"), ("deep.json", "[" * 100_000)):
        (folder / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}' cannot be read as JSON"):
            images(folder, like=folder / name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "size and mean and std must be given, because no like= is given"),
        ({"size": 32, "mean": (0, 0, 0)}, "^std must be given"),
        ({"size": 32, "like": torch.nn.Linear(2, 2)}, "the model does not state its preprocessing"),
        ({"size": 0, **PLAIN}, r"size is \(0, 0\)"),
        ({"size": (32, 32, 3), **PLAIN}, "size is"),
        ({"size": 32, "mean": (0, 0), "std": (1, 1)}, "mean holds 2 values"),
        ({"size": 32, "mean": (0, 0, 0), "std": (1, 0, 1)}, "std above 0"),
        ({"size": 32, **PLAIN, "resize": "fit"}, "resize is 'fit'. Give one of shorter, stretch, pad"),
        ({"size": 32, **PLAIN, "crop": 1.5}, "crop is 1.5"),
        ({"size": 32, **PLAIN, "colour": 1}, "colour"),
        ({"size": 32, **PLAIN, "batch": 0}, "batch is 0"),
    ],
)
def test_options_are_checked(folder: Path, given: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        images(folder, **given)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0.png", "is a file. Name the folder"),
        ("*.png", "is a pattern. Name the folder"),
        ("nowhere", "does not exist"),
        ("tensors", r"holds no picture.*it holds \.npy"),
        ("empty", "it is empty"),
    ],
)
def test_what_is_no_folder_of_pictures_is_named(folder: Path, name: str, said: str) -> None:
    (folder / "empty").mkdir()
    (folder / "tensors").mkdir()
    np.save(folder / "tensors" / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=said):
        images(folder / name, 16, **PLAIN)


def test_frames_of_a_video_are_spread_over_it(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for number in range(40):
            gray = np.full((32, 32, 3), 6 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "broken.mov").write_bytes(b"no video")

    data = images(tmp_path, 16, **PLAIN, frames=4)
    with pytest.warns(DisparseWarning, match=r"broken\.mov"):
        (batch,) = data

    levels = sorted((batch.mean(dim=(1, 2, 3)) * 255).tolist())
    assert [round(level / 6) for level in levels] == pytest.approx([5, 15, 25, 35], abs=1)
    assert sorted(source.name for source in data.sources)[0] == "a.mp4 at 0.50 s"


def test_the_contact_sheet_shows_what_the_network_sees(folder: Path) -> None:
    Image.new("RGB", (64, 64), (250, 10, 20)).save(folder / "red.png")
    data = images(folder, 32, mean=(0.5,) * 3, std=(0.5,) * 3)

    path = data.contact_sheet(folder / "sheet.png")

    with Image.open(path) as sheet:
        colors = {color for _, color in sheet.convert("RGB").getcolors(1 << 24)}
    assert (250, 10, 20) in colors
    with pytest.raises(SaveError, match="cannot be written: No such file"):
        data.contact_sheet(folder / "nowhere" / "sheet.png")


def test_a_network_is_pruned_on_a_folder(tmp_path: Path) -> None:
    for number in range(18):
        picture(20, 24, number).save(tmp_path / f"{number}.png")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3), torch.nn.Flatten()
    )

    result = ds.prune(model, images(tmp_path, 16, **PLAIN), macs=0.5)

    assert result.report.deviation is not None
    assert result.report.deviation.samples > 15


def test_preprocessing_reads_as_one_line() -> None:
    given = Preprocessing((32, 48), (0.5,) * 3, (0.25,) * 3, crop=0.875)
    assert str(given) == (
        "32x48 RGB, center crop of 0.875, bilinear, mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25"
    )
