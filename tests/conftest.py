"""One thread a process, a fixed seed a test, and one Hypothesis profile."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# No deadline: the first example of a test pays for imports and compilation. In CI the same examples
# every time, so that a failure is about the change and not about luck; elsewhere new ones every time.
settings.register_profile("default", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
