"""One thread a process, a fixed seed a test, one Hypothesis profile, and less idle work for torch."""

from __future__ import annotations

import copy
import functools
import gc
import math
import os
import sys

import pytest
import torch
import torch._export.utils as export_utils
from hypothesis import settings

torch.set_num_threads(1)

# No deadline: the first example of a test pays for imports and compilation. In CI the same examples
# every time, so that a failure is about the change and not about luck; elsewhere new ones every time.
settings.register_profile("default", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints does not depend on how busy the machine is."""
    monkeypatch.setattr("disparse_structured.progress.INTERVAL", math.inf)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_registry() -> None:
    """Reads the exporter's table of ONNX functions once a process: it parses a thousand sources each time."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is None or isinstance(vars(module.ONNXRegistry)["from_torchlib"], staticmethod):
        return
    read = functools.cache(module.ONNXRegistry.from_torchlib)

    def copied(**options: int) -> object:
        registry = copy.copy(read(**options))
        registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
        return registry

    module.ONNXRegistry.from_torchlib = staticmethod(copied)


@pytest.fixture(scope="session", autouse=True)
def _one_list_of_operators() -> None:
    """Has the exporter look up torch's C++ operators once a process: it does so 20 times an ONNX export."""
    found = export_utils._materialize_cpp_cia_ops  # makes ``torch.ops`` hold them, and returns nothing
    export_utils._materialize_cpp_cia_ops = functools.cache(found)


@pytest.fixture(scope="session", autouse=True)
def _one_count_of_devices() -> None:
    """Has torch count the graphics cards once a process: it looks for a driver 200 times an ONNX export."""
    torch.cuda._cached_device_count = torch.cuda.device_count()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of one of the zoo's networks on one process, which then analyzes it once."""
    for item in items:
        network = getattr(item, "callspec", None) and item.callspec.params.get("id")
        if network is not None and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"network {network}"))


def pytest_collection_finish() -> None:
    """Spares the garbage collector what the imports made: an export makes many objects and keeps few."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    gc.unfreeze()
