"""A folder of pictures or videos as the inputs of a network."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from disparse_structured.data import videos
from disparse_structured.data.preprocessing import Preprocessing, known_preprocessing
from disparse_structured.errors import DataError, DisparseWarning, MissingExtraError, OptionError, require

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Suffixes of the files that are read as pictures."""

BATCH = 8

Open = Callable[[], "Image"]


@dataclass(frozen=True)
class Source:
    """A picture, or a frame of a video.

    Args:
        path: the file.
        name: the path relative to the folder; for a frame of a video, with its time.
        open: reads it.
    """

    path: Path
    name: str
    open: Open


class Images:
    """The pictures of a folder in batches ``[N, channels, height, width]`` of float32.

    It can be iterated more than once. The files are shuffled once with the seed, so that the first few dozen
    come from all folders. A file that cannot be read is skipped; :attr:`skipped` and a warning name it.

    Args:
        sources: the pictures, in the order in which they are read.
        preprocessing: turns a picture into the network's input.
        batch: examples in a batch.
        skipped: files that cannot be read at all, and why.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        preprocessing: Preprocessing,
        batch: int = BATCH,
        skipped: Mapping[str, str] = {},  # copied
    ) -> None:
        self.sources = tuple(sources)
        self.preprocessing = preprocessing
        self.skipped = dict(skipped)
        self._batch = batch
        self._named: set[str] = set()

    def __len__(self) -> int:
        """The number of batches, if every file can be read."""
        return -(-len(self.sources) // self._batch)

    def __iter__(self) -> Iterator[Tensor]:
        """The batches.

        Raises:
            DataError: no file can be read.
        """
        waiting: list[Tensor] = []
        read = 0
        try:
            for _, pixels in self._readable():
                waiting.append(self._tensor(pixels))
                read += 1
                if len(waiting) == self._batch:
                    yield torch.stack(waiting)
                    waiting = []
            if waiting:
                yield torch.stack(waiting)
        finally:
            self._warn()
        if not read:
            raise DataError(f"none of the {len(self.sources)} files can be read: {self._said()}.")

    def contact_sheet(self, path: str | Path, number: int = 24) -> Path:
        """Draws the first ``number`` inputs as the network will see them, and returns the file's path.

        Args:
            path: where to write, such as ``"inputs.png"``.
            number: how many inputs to show.

        Raises:
            DataError: no file can be read, or ``path`` cannot be written.
        """
        from disparse_structured.data.contact_sheet import contact_sheet  # needs an extra

        shown = [(source.name, pixels) for source, pixels in itertools.islice(self._readable(), number)]
        if not shown:
            raise DataError(f"none of the {len(self.sources)} files can be read: {self._said()}.")
        values = torch.stack([self._tensor(pixels) for _, pixels in shown])
        title = (
            f"{self._count()} inputs, {self.preprocessing}; values {values.min():.2f} to "
            f"{values.max():.2f}, with mean {values.mean():.2f} and standard deviation {values.std():.2f}"
        )
        return contact_sheet(shown, title, Path(path))

    def facts(self) -> dict[str, Any]:
        """What was read and how it was prepared, for a report."""
        return {
            "inputs": self._count(),
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "skipped": dict(self.skipped),
        }

    def __repr__(self) -> str:
        return f"Images({len(self.sources)} inputs, {self.preprocessing})"

    def _count(self) -> int:
        """How many inputs there are, without those that could not be read so far."""
        return sum(source.name not in self.skipped for source in self.sources)

    def _readable(self) -> Iterator[tuple[Source, Image]]:
        for source in self.sources:
            if source.name in self.skipped:
                continue
            try:
                with source.open() as picture:
                    pixels = self.preprocessing.pixels(picture)
            except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error
                # Ultralytics makes Image.open look for one more decoder, which may be missing.
                reason = (error.__context__ or error) if isinstance(error, ImportError) else error
                self.skipped[source.name] = _why(reason, source.path, source.name)
            else:
                yield source, pixels

    def _tensor(self, pixels: Image) -> Tensor:
        values = torch.from_numpy(np.asarray(pixels, dtype=np.float32).copy())
        values = values.reshape(*self.preprocessing.size, self.preprocessing.channels).permute(2, 0, 1)
        mean = torch.tensor(self.preprocessing.mean)[:, None, None]
        std = torch.tensor(self.preprocessing.std)[:, None, None]
        return ((values * self.preprocessing.scale - mean) / std).contiguous()

    def _warn(self) -> None:
        new = self.skipped.keys() - self._named
        if new:
            self._named |= new
            noun = "file was" if len(self.skipped) == 1 else "files were"
            warnings.warn(
                f"{len(self.skipped)} {noun} skipped: {self._said()}.", DisparseWarning, stacklevel=3
            )

    def _said(self) -> str:
        named = "; ".join(f"{name} ({why})" for name, why in list(self.skipped.items())[:3])
        return named + (f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else "")


def images(
    folder: str | Path,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    like: Any = None,
    batch: int = BATCH,
    seed: int = 0,
    frames: int = 8,
    **steps: Any,
) -> Images:
    """The pictures in ``folder`` and its subfolders, as the inputs of a network.

    Reads JPEG, PNG, WebP and BMP files, with their EXIF orientation applied, and frames of videos with the
    extra ``videos``. Hidden files are ignored.

    Args:
        folder: where the files are.
        size: side of the input in pixels, or ``(height, width)``.
        mean: subtracted from each channel, once pixels are scaled to 0 to 1.
        std: what each channel is then divided by. One value of each means gray inputs.
        like: states what is not given here: a timm model, a model with a timm backbone, a
            ``pretrained_cfg``, or the path of a Hugging Face ``preprocessor_config.json`` or a timm
            ``config.json``.
        batch: examples in a batch.
        seed: for the order.
        frames: how many evenly spaced frames of each video are read.
        steps: other arguments of :class:`~disparse_structured.data.preprocessing.Preprocessing`, such as
            ``resize="pad"`` or ``crop=0.875``.

    Raises:
        DataError: ``folder`` is not a folder, or holds nothing that can be read.
        OptionError: ``size``, ``mean`` or ``std`` is neither given nor stated by ``like``, or out of range.
        MissingExtraError: Pillow, or for a folder of videos PyAV, is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 48)).save(folder / "a.png")
        >>> data = images(folder, 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> [list(batch.shape) for batch in data]
        [[1, 3, 32, 32]]
    """
    require("images", "PIL")
    preprocessing = chosen_preprocessing(size, mean, std, like, steps)
    if batch < 1 or frames < 1:
        raise OptionError(f"batch is {batch} and frames {frames}. Give at least 1.")
    folder = Path(folder)
    sources, skipped = _found(folder, frames)
    if not sources:
        _refuse_empty(folder, skipped)
    random.Random(seed).shuffle(sources)
    return Images(sources, preprocessing, batch, skipped)


def chosen_preprocessing(
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    like: Any,
    steps: Mapping[str, Any],
) -> Preprocessing:
    """The preprocessing that is given. What is not given is taken from ``like``.

    Raises:
        OptionError: ``size``, ``mean`` or ``std`` is neither given nor stated.
    """
    given = {"size": (size, size) if isinstance(size, int) else size, "mean": mean, "std": std}
    found = {} if like is None else known_preprocessing(like)
    found.update({name: tuple(value) for name, value in given.items() if value is not None}, **steps)
    if "fill" in found and "fill" not in steps and len(found.get("mean", ())) != len(found["fill"]):
        del found["fill"]  # of another number of channels
    missing = [name for name in given if name not in found]
    if missing:
        reason = "no like= is given" if like is None else "the model does not state its preprocessing"
        raise OptionError(
            f"{' and '.join(missing)} must be given, because {reason}. Take them from the code that trained "
            "the network. Those of ImageNet are mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225."
        )
    try:
        return Preprocessing(**found)
    except TypeError as error:
        raise OptionError(f"{error}. Preprocessing lists the arguments.") from None


def _found(folder: Path, frames: int) -> tuple[list[Source], dict[str, str]]:
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} {_what(folder)}. Name the folder that holds the pictures.")
    sources: list[Source] = []
    skipped: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if any(part.startswith(".") for part in below.parts) or not path.is_file():
            continue
        # A name that is not UTF-8 cannot be written into a report.
        name = os.fsencode(below.as_posix()).decode(errors="replace")
        suffix = path.suffix.lower()
        if suffix in PICTURES:
            sources.append(Source(path, name, partial(_opened, path)))
        elif suffix in videos.VIDEOS:
            try:
                times = videos.times(path, frames)
            except Exception as error:  # PyAV's errors share no base class
                skipped[name] = _why(error, path, name)
            else:
                sources += [
                    Source(path, f"{name} at {time:.2f} s", partial(videos.frame, path, time))
                    for time in times
                ]
    return sources, skipped


def _why(error: BaseException, path: Path, name: str) -> str:
    """What is wrong with a file, without its folder, because reports are shared."""
    return f"{type(error).__name__}: {error}".replace(str(path), name)


def _opened(path: Path) -> Image:
    from PIL import Image, ImageOps  # an extra

    with Image.open(path) as picture:
        picture.load()
        return ImageOps.exif_transpose(picture)


def _what(folder: Path) -> str:
    if folder.is_file():
        return "is a file"
    return "is a pattern" if any(sign in str(folder) for sign in "*?[") else "does not exist"


def _refuse_empty(folder: Path, skipped: Mapping[str, str]) -> None:
    if any("MissingExtraError" in why for why in skipped.values()):
        raise MissingExtraError(
            f"{str(folder)!r} holds {len(skipped)} videos and no pictures. Run: pip install "
            "'disparse-structured[videos]'"
        )
    if skipped:
        name, why = next(iter(skipped.items()))
        raise DataError(f"none of the {len(skipped)} files in {str(folder)!r} can be read: {name} ({why}).")
    others = sorted({path.suffix or path.name for path in folder.rglob("*") if path.is_file()})
    held = f"it holds {', '.join(others[:5])}" if others else "it is empty"
    raise DataError(
        f"{str(folder)!r} holds no picture ({', '.join(PICTURES)}) and no video "
        f"({', '.join(videos.VIDEOS)}); {held}. Name a folder of pictures. Pass tensors directly as data."
    )
