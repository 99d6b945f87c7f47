"""Types of option values: what cannot be right is refused while the command line is parsed."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

SEEDS = 2**32
"""Seeds are below this, the range that every random generator in use accepts."""


def limit(text: str) -> float:
    """A budget: a fraction of the dense cost below 1, or a whole number above 1."""
    value = _percent(text)
    whole = value > 1 and value.is_integer() and not text.endswith("%")
    if not (0 < value < 1 or whole):
        raise argparse.ArgumentTypeError(
            f"{text} is neither a fraction between 0 and 1 nor a whole number above 1. Give 0.5, 50% "
            "or 500000, for example"
        )
    return value


def latency(text: str) -> float | str:
    """A share of the dense latency below 1, or milliseconds, such as ``12ms``."""
    text = str(_percent(text)) if text.endswith("%") else text
    found = re.fullmatch(r"(\d*\.?\d+)(\s*ms)?", text.strip())
    value = float(found[1]) if found else 0.0
    if not found or value <= 0 or (not found[2] and value >= 1):
        raise argparse.ArgumentTypeError(
            f"{text} is neither a share of the dense latency between 0 and 1 nor milliseconds. Give 0.5 or "
            "12ms, for example"
        )
    return text if found[2] else value


def count(least: int = 1) -> Callable[[str], int]:
    """A whole number of at least ``least``."""

    def parse(text: str) -> int:
        value = _whole(text)
        if value is None or value < least:
            _refuse(text, f"a whole number of at least {least}")
        return value

    return parse


def rounding(text: str) -> int | str:
    """``auto``, or a whole number of at least 1."""
    value = _whole(text)
    if text != "auto" and (value is None or value < 1):
        _refuse(text, "'auto' or a whole number of at least 1")
    return text if value is None else value


def seed(text: str) -> int:
    """A random seed."""
    value = _whole(text)
    if value is None or not 0 <= value < SEEDS:
        _refuse(text, f"a whole number from 0 to {SEEDS - 1}")
    return value


def share(text: str) -> float:
    """A share, from 0 to 1."""
    return _within(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def share_below_one(text: str) -> float:
    """A share above 0 and below 1."""
    return _within(text, lambda value: 0 < value < 1, "a number above 0 and below 1")


def share_above_zero(text: str) -> float:
    """A share above 0 and at most 1."""
    return _within(text, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def positive(text: str) -> float:
    """A finite number above 0."""
    return _within(text, lambda value: value > 0, "a number above 0")


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    return _within(text, lambda value: value >= 0, "a number of at least 0")


def by_task(number: Callable[[str], float]) -> Callable[[str], tuple[str, float]]:
    """``depth=0.5``: a task's name and a ``number``."""

    def parse(text: str) -> tuple[str, float]:
        task, equals, value = text.rpartition("=")
        if not (equals and task):
            raise argparse.ArgumentTypeError(f"expected TASK=NUMBER such as depth=0.5, got {text!r}")
        return task, number(value)

    return parse


def tolerance(text: str) -> tuple[str | None, float]:
    """``0.05`` for every task, or ``depth=0.05`` for one."""
    return by_task(positive)(text) if "=" in text else (None, positive(text))


def shape(text: str) -> tuple[int, ...]:
    """The shape of a tensor, such as ``2x3x224x224``."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"expected sizes joined by x, such as 2x3x224x224, got {text!r}")
    return tuple(map(int, text.split("x")))


def image_size(text: str) -> tuple[int, int]:
    """Height and width of a picture, such as ``192x640``, or one number for both."""
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", text):
        raise argparse.ArgumentTypeError(
            f"expected pixels, such as 224, or height and width, such as 192x640, got {text!r}"
        )
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def channels(text: str) -> tuple[float, ...]:
    """One finite number for each channel: ``0.485,0.456,0.406``, or one for gray pictures."""
    numbers = tuple(map(_number, text.split(",")))
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        _refuse(
            text, "three numbers separated by commas, such as 0.485,0.456,0.406, or one for gray pictures"
        )
    return numbers


def entry_point(text: str) -> str:
    """``package.module:name``, or a method that :func:`method_call` can read."""
    if ":" not in text:
        method_call(text)
    return text


def method_call(text: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """``fuse``, or ``encode=2x12,2x4``: a method, and the shapes of its arguments."""
    name, equals, shapes = text.partition("=")
    if not all(re.fullmatch(r"\w+", part) for part in name.split(".")) or (equals and not shapes):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not name an entry point. Write fuse for a method without arguments, "
            "encode=2x3x64x64 for one with inputs of these shapes, or package.module:name for a dict of them"
        )
    return name, tuple(map(shape, shapes.split(","))) if equals else ()


def tasks(text: str) -> str:
    """``package.module:name``, or names of outputs that :func:`task_outputs` can read."""
    if ":" not in text:
        try:
            task_outputs(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def task_outputs(text: str) -> list[tuple[str, str | int]]:
    """Names and outputs of the tasks in ``depth,normals=aux.normals,label=0``.

    Raises:
        ValueError: an entry has no name or no output, or a name is used twice.
    """
    found: dict[str, str | int] = {}
    for entry in text.split(","):
        name, equals, output = entry.strip().partition("=")
        if not name or (equals and not output):
            raise ValueError(
                f"{entry.strip()!r} in {text!r} does not name a task. Write depth,normals for dict keys, "
                "depth=aux.depth for a path, depth=0 for an index, or package.module:tasks for Task objects"
            )
        if name in found:
            raise ValueError(f"the task name {name!r} is used twice in {text!r}")
        found[name] = int(output) if re.fullmatch(r"-?\d+", output) else output or name
    return list(found.items())


def output_folder(text: str) -> Path:
    """A folder that exists and can be written, or that can be made."""
    folder = Path(text)
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{str(existing)!r} is a file. Name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{str(existing)!r} is not writable. Name another folder")
    return folder


def weights_file(text: str) -> Path:
    """A file that exists."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"there is no file {text!r}. Give a .safetensors file, or a torch file that holds tensors only"
        )
    return Path(text)


def _within(text: str, fits: Callable[[float], bool], wanted: str) -> float:
    value = _number(text)
    if not (math.isfinite(value) and fits(value)):
        _refuse(text, wanted)
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _percent(text: str) -> float:
    """A number, also as a percentage."""
    return _number(text[:-1]) / 100 if text.endswith("%") else _number(text)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _refuse(text: str, wanted: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
