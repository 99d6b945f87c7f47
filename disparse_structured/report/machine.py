"""Which machine figures are from."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path


def processor() -> str:
    """The model of the processor."""
    return _facts().get("model name") or platform.processor() or platform.machine()


def processor_digest() -> str:
    """A short hash of what the processor can do: two of one name may differ."""
    numbers = [_facts().get(name, "") for name in ("cpu family", "model", "stepping", "flags", "Features")]
    return hashlib.sha256("|".join(numbers).encode()).hexdigest()[:8]


@functools.cache
def _facts() -> Mapping[str, str]:
    """What Linux says about the first processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))
    return {name.strip(): value.strip() for name, _, value in pairs}
