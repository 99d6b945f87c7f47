"""Frames of videos, read by PyAV (an extra)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from disparse_structured.errors import require

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
"""Suffixes of the files that are read as videos."""


def times(path: Path, number: int) -> list[float]:
    """``number`` evenly spaced times in the video at ``path``, in seconds, none at its very ends.

    Raises:
        MissingExtraError: PyAV is not installed.
        ValueError: the file has no video, or does not state how long it is.
    """
    require("videos", "av")
    import av  # an extra

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("there is no video in it")
        if not container.duration:
            raise ValueError("it does not state its duration")
        seconds = container.duration / av.time_base
    return [seconds * (each + 0.5) / number for each in range(number)]


def frame(path: Path, time: float) -> Image:
    """The first frame of the video at ``path`` that is shown at ``time`` seconds or later.

    Raises:
        ValueError: there is none.
    """
    import av  # an extra

    with av.open(str(path)) as container:
        start = (container.start_time or 0) / av.time_base
        container.seek(int((start + time) * av.time_base))
        last = None
        for last in container.decode(video=0):
            if last.time is not None and last.time - start >= time:
                break
        if last is None:
            raise ValueError(f"it has no frame at {time:.2f} s")
        picture: Image = last.to_image()  # type: ignore[no-untyped-call]  # PyAV does not annotate it
    return picture
