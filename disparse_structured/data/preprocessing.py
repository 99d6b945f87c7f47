"""How a picture becomes a network's input: resized, cropped, scaled and normalized, as its library does."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disparse_structured.errors import DataError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZES = ("shorter", "stretch", "pad")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the interpolations, as Hugging Face files hold them."""

_HUGGING_FACE = (
    *("Beit", "Bit", "Blip", "CLIP", "ConvNext", "DPT", "DeiT", "MobileNetV1", "MobileNetV2", "Segformer"),
    *("Siglip", "ViT"),
)
"""Image processors of Hugging Face that do what their configuration says and nothing else."""

_UNSUPPORTED = ("do_pad", "do_flip_channel_order", "keep_aspect_ratio", "rescale_offset", "size_divisor")

_TIMM_RESIZES = {"center": "shorter", "squash": "stretch", "border": "pad"}


@dataclass(frozen=True)
class Preprocessing:
    """How to turn a picture into a tensor ``[channels, height, width]``.

    Args:
        size: height and width of the input, in pixels.
        mean: subtracted from each channel, after scaling; one value for gray inputs, three for RGB.
        std: what each channel is then divided by.
        resize: ``"shorter"`` keeps the aspect ratio and crops the center; ``"stretch"`` does not keep the
            ratio; ``"pad"`` keeps it and fills the rest with ``fill``.
        crop: fraction of the resized picture's side that the crop keeps, such as 0.875; 1 crops no more than
            needed.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``.
        scale: multiplies the pixels, which are from 0 to 255.
        fill: the value of padded pixels in each channel, from 0 to 255; one value for all of them.

    Raises:
        OptionError: a value is out of range.

    Example:
        >>> Preprocessing((32, 48), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).size
        (32, 48)
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "shorter"
    crop: float = 1.0
    interpolation: str = "bilinear"
    scale: float = 1 / 255
    fill: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(
            isinstance(side, int) and 0 < side <= 1 << 16 for side in self.size
        ):
            raise OptionError(f"size is {self.size!r}. Give height and width in pixels, such as (224, 224).")
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise OptionError(
                f"mean holds {len(self.mean)} values and std {len(self.std)}. Give three of each for RGB "
                "inputs, one of each for gray ones."
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(value > 0 for value in self.std):
            raise OptionError(f"mean {self.mean} and std {self.std} must be finite, and std above 0.")
        for name, value, known in (
            ("resize", self.resize, RESIZES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in known:
                raise OptionError(f"{name} is {value!r}. Give one of {', '.join(known)}.")
        if not 0 < self.crop <= 1:
            raise OptionError(f"crop is {self.crop}. Give a share above 0 and at most 1, such as 0.875.")
        if not (
            math.isfinite(self.scale) and self.scale > 0 and all(0 <= value <= 255 for value in self.fill)
        ):
            raise OptionError(f"scale {self.scale} must be above 0, and fill {self.fill} from 0 to 255.")
        if len(self.fill) not in (1, self.channels):
            raise OptionError(
                f"fill {self.fill} must hold one value, or one for each of {self.channels} channels."
            )

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for gray."""
        return len(self.mean)

    def pixels(self, picture: Image) -> Image:
        """The part of ``picture`` that the network sees, ``size`` pixels, RGB or gray."""
        from PIL import Image  # an extra

        mode = "RGB" if self.channels == 3 else "L"
        picture = _in_mode(picture, mode).resize(
            self._resized(picture.size), Image.Resampling[self.interpolation.upper()]
        )
        fill = self.fill * (self.channels // len(self.fill))
        seen = Image.new(mode, self.size[::-1], fill if len(fill) > 1 else fill[0])
        place = map(_offset, seen.size, picture.size)
        seen.paste(picture, (next(place), next(place)))
        return seen

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture of ``size`` before its center is cropped; rounded as timm does it."""
        height, width = (math.floor(side / self.crop) for side in self.size)
        if self.resize == "stretch":
            return width, height
        ratios = size[0] / width, size[1] / height
        if self.resize == "shorter" and width == height:
            short, long = min(size), max(size)
            sides = width, int(width * long / short)
            return sides if size[0] <= size[1] else sides[::-1]
        ratio = max(ratios) if self.resize == "pad" else min(ratios)
        return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))

    def __str__(self) -> str:
        """One line for people."""
        how = {"shorter": "center crop", "stretch": "stretched", "pad": "padded"}[self.resize]
        kept = f" of {self.crop:g}" if self.crop < 1 else ""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        kind = "RGB" if self.channels == 3 else "gray"
        return (
            f"{self.size[0]}x{self.size[1]} {kind}, {how}{kept}, {self.interpolation}, mean {mean}, std {std}"
        )


def known_preprocessing(source: Any) -> dict[str, Any]:
    """The arguments of :class:`Preprocessing` that ``source`` states.

    Args:
        source: a timm model, or one with a timm backbone; a ``pretrained_cfg``; or the path of a Hugging Face
            ``preprocessor_config.json`` or a timm ``config.json``.

    Raises:
        DataError: the file cannot be read, or describes steps that are not supported.
    """
    if isinstance(source, str | Path):
        return _from_file(Path(source))
    modules = source.modules() if hasattr(source, "modules") else [source]
    for module in modules:
        found = getattr(module, "pretrained_cfg", module)
        if dataclasses.is_dataclass(found) and not isinstance(found, type):
            found = dataclasses.asdict(found)
        if isinstance(found, Mapping) and found.get("input_size"):
            return _from_timm(found)
    return {}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as JSON ({type(error).__name__}: {error}). Give a "
            "Hugging Face preprocessor_config.json, or a timm config.json."
        ) from error
    if isinstance(found, Mapping):
        inner = found.get("pretrained_cfg", found)
        try:
            if isinstance(inner, Mapping) and "input_size" in inner:
                return _from_timm(inner)
            if any(key in found for key in ("image_mean", "do_normalize", "do_resize", "size")):
                return _from_hugging_face(found)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise DataError(
                f"{str(path)!r} holds a value of the wrong kind ({type(error).__name__}: {error}). Give "
                "size=, mean= and std= instead."
            ) from error
    raise DataError(
        f"{str(path)!r} does not state how images are prepared: it has no 'input_size' (timm) and no "
        "'image_mean' or 'size' (Hugging Face). Give size=, mean= and std= instead."
    )


def _from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    channels, height, width = config["input_size"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return {
        "size": (int(height), int(width)),
        "mean": mean if len(mean) == channels else mean[:1],
        "std": std if len(std) == channels else std[:1],
        "resize": _timm_resize(config.get("crop_mode") or "center"),
        "crop": float(config.get("crop_pct") or 0.875),
        "interpolation": config.get("interpolation") or "bicubic",
        "fill": tuple(round(255 * value) for value in mean) if len(mean) == channels else (0,),
    }


def _timm_resize(mode: str) -> str:
    if mode not in _TIMM_RESIZES:
        raise DataError(
            f"the crop mode {mode!r} of the timm configuration is not supported; "
            f"{', '.join(_TIMM_RESIZES)} are. "
            "Give resize= instead, or prepare the images with timm and pass the tensors."
        )
    return _TIMM_RESIZES[mode]


def _from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    plain = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    steps = [name for name in _UNSUPPORTED if config.get(name)]
    if plain not in _HUGGING_FACE or steps:
        raise DataError(
            f"{' and '.join(steps) or kind} is not supported. Prepare the images with transformers and pass "
            "the tensors, or give size=, mean= and std= instead."
        )
    found: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1.0}
    if config.get("do_rescale", True):
        found["scale"] = float(config.get("rescale_factor") or 1 / 255)
    if config.get("do_normalize", True):
        found["mean"], found["std"] = tuple(config["image_mean"]), tuple(config["image_std"])
    if config.get("resample") in _PILLOW:
        found["interpolation"] = _PILLOW[config["resample"]]
    size = config.get("crop_size") if config.get("do_center_crop") else config.get("size")
    height, width = _sides(size if size is not None else config["size"])
    found["size"] = (height, width)
    resized = config.get("size")
    shortest = resized.get("shortest_edge") if isinstance(resized, Mapping) else None
    cropped = config.get("do_center_crop")
    if not (cropped or config.get("do_resize", True)):
        raise DataError("the configuration does not resize, so inputs differ in shape. Give size= too.")
    if not cropped and config.get("crop_pct") and shortest is not None and shortest < 384:
        found |= {"resize": "shorter", "crop": float(config["crop_pct"])}
    elif cropped and shortest is not None:
        found |= {"resize": "shorter", "crop": min(height, width) / int(shortest)}
    else:
        found["resize"] = "stretch"
        if cropped and resized is not None:
            found["crop"] = height / _sides(resized)[0]
    return found


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        if "longest_edge" in size:
            raise DataError(
                "the configuration keeps every image's own aspect ratio ('longest_edge'), so inputs "
                "differ in shape. Give size= and resize='pad' or 'stretch' instead."
            )
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
        return int(size["height"]), int(size["width"])
    if isinstance(size, Sequence):
        return int(size[0]), int(size[1])
    return int(size), int(size)


def _offset(seen: int, side: int) -> int:
    """Where a picture of ``side`` pixels begins within ``seen`` pixels; negative if it is cropped."""
    return (seen - side) // 2 if seen > side else -round((side - seen) / 2)


def _in_mode(picture: Image, mode: str) -> Image:
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if picture.mode.startswith("I"):  # 16 bits, which conversion alone would clip
        picture = picture.convert("I").point(lambda value: value * (255 / 65535) + 0).convert("L")
    return picture.convert(mode)
