"""Every call leaves the model, and all that its code reads and writes, as they were, object by object."""

from __future__ import annotations

import array
import functools
import os
import queue
import random
import sys
import threading
import weakref
from collections import ChainMap, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

import disparse_structured as ds
from disparse_structured.cli.command import main
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import BudgetError, DisparseWarning
from disparse_structured.export import export_onnx
from disparse_structured.graph import side_effects
from disparse_structured.refit import refit
from disparse_structured.relatedness import relate
from disparse_structured.structure import Structure, analyse, count_macs
from disparse_structured.structure.structure import Form
from disparse_structured.surgery.extraction import extract
from disparse_structured.surgery.graph import apply_graph

IMAGES = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TASK = [ds.Task("out", ())]
TASKS = [
    ds.Task("mean", (), lambda output, batch: output.mean()),
    ds.Task("square", (), lambda output, batch: output.square().mean()),
]

ACTIVATIONS: dict[str, Any] = {}
"""Hooks write to this, and ``forward`` reads it."""

GRIDS: dict[tuple[int, int], Tensor] = {}
"""A cache of a Python module."""

CALLS = [0]

INSPECTED: nn.Module | None = None
"""The model that the command line finds."""


class Trunk(nn.Module):
    """Two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 4, 1)

    def trunk(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class KeepsAttention(Trunk):
    """Sets a tensor attribute that the constructor did not set."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        self.attention = y.softmax(1)
        return self.head(y)


class MakesAnchors(Trunk):
    """Makes anchors on the first call, and again for every new shape, as detectors do."""

    anchors: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        if self.shape != tuple(y.shape):
            self.anchors, self.shape = torch.linspace(0, 1, y.shape[-1]), tuple(y.shape)
        return self.head(y) + self.anchors


class RegistersBuffer(Trunk):
    """Registers a buffer in ``forward``."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.linspace(0, 1, y.shape[-1]))
        return self.head(y) * self.grid


class Collects(Trunk):
    """Appends to containers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.seen, self.last = [], {"calls": 0}, deque(maxlen=3)
        self.shapes: set[tuple[int, ...]] = set()
        self.nested = OrderedDict(deep=[{"values": []}])

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        self.items.append(y)
        self.seen["calls"] += 1
        self.seen["output"] = y
        self.last.append(y)
        self.shapes.add(tuple(y.shape))
        self.nested["deep"][0]["values"].append(y)
        return self.head(y)


class Remembers:
    """An object that is not a module."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None


class HoldsObject(Trunk):
    """Writes to an object with slots, and to a class."""

    latest: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.memory = Remembers()

    def forward(self, x: Tensor) -> Tensor:
        self.memory.value = y = self.trunk(x)
        type(self).latest = y
        return self.head(y)


class HooksIntoGlobal(Trunk):
    """Hooks write activations to a global dict that ``forward`` reads."""

    def __init__(self) -> None:
        super().__init__()
        self.second.register_forward_hook(_store)
        self.activations = ACTIVATIONS

    def forward(self, x: Tensor) -> Tensor:
        self.second(torch.relu(self.first(x)))
        return self.head(torch.relu(self.activations["second"]))


def _store(module: nn.Module, inputs: Any, output: Tensor) -> None:
    ACTIVATIONS["second"] = output


class HooksIntoItself(Trunk):
    """A hook closes over the model."""

    def __init__(self) -> None:
        super().__init__()
        self.feature: Any = None

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.feature = output

        self.second.register_forward_hook(hook)

    def forward(self, x: Tensor) -> Tensor:
        self.second(torch.relu(self.first(x)))
        return self.head(torch.relu(self.feature))


class SharesVariable(Trunk):
    """Two functions of one closure: a hook writes the variable that another hook reads."""

    def __init__(self) -> None:
        super().__init__()
        feature: Any = None

        def write(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal feature
            feature = output * self.head.weight.sum()

        def read(module: nn.Module, inputs: Any) -> Any:
            assert self.head is module
            return (torch.relu(feature),)

        self.second.register_forward_hook(write)
        self.head.register_forward_pre_hook(read)


@functools.cache
def _ramp(length: int) -> Tensor:
    return torch.linspace(0, 1, length)


class CachesByFunction(Trunk):
    """Calls a cached function, and one that keeps results in a global dict."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.trunk(x))
        return y + _ramp(y.shape[-1]) + _grid(*y.shape[-2:])


def _grid(height: int, width: int) -> Tensor:
    if (height, width) not in GRIDS:
        GRIDS[height, width] = torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 1, width)
    return GRIDS[height, width]


class Counts(Trunk):
    """Counts its calls in an attribute and in a global."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        CALLS[0] += 1
        return super().forward(x)


class Frozen(Trunk):
    """A submodule has its own mode, and parameters that are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)

    def trunk(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.second(torch.relu(self.first(x)))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        KeepsAttention, MakesAnchors, RegistersBuffer, Collects, HoldsObject, HooksIntoGlobal,
        HooksIntoItself, SharesVariable, CachesByFunction, Counts, Frozen,
    )
}  # fmt: skip


def refused(model: nn.Module) -> None:
    with pytest.raises(BudgetError):
        ds.prune(model, IMAGES, TASK, macs=1e-6, method=ds.DiSparse())


def one_less(structure: Structure) -> Tensor:
    """Keeps all units but the first of every group."""
    keep = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        keep[group.slice.start] = False
    return keep


def applied(model: nn.Module) -> None:
    structure = analyse(model, IMAGES[:2], TASK)
    ds.apply(model, Plan.from_keep(structure, one_less(structure)), structure)


def applied_as_graph(model: nn.Module) -> None:
    structure = analyse(model, IMAGES[:2], TASK, form="graph")
    apply_graph(model, Plan.from_keep(structure, one_less(structure)), structure)


def refitted(model: nn.Module) -> None:
    structure = analyse(model, IMAGES[:2], TASK)
    refit(model, structure, one_less(structure), [IMAGES])


def exported(model: nn.Module) -> None:
    with TemporaryDirectory() as folder:
        export_onnx(model, IMAGES[:2], Path(folder, "model.onnx"), outputs={"out": lambda output: output})


def loaded(model: nn.Module, form: Form = "module") -> None:
    structure = analyse(model, IMAGES[:2], TASK, form=form)
    result = ds.prune(model, IMAGES, structure=structure, macs=0.5, method=ds.DiSparse(), refit=None)
    with TemporaryDirectory() as folder:
        result.save(folder)
        ds.load(folder, lambda: model)


def inspected(model: nn.Module) -> None:
    module = sys.modules[__name__]
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.random.fork_rng(devices=[]),
    ):  # the command sets the seed
        patch.setattr(module, "INSPECTED", model)
        assert main(["inspect", "--model", f"{__name__}:INSPECTED", "--example", "2x3x16x16"]) == 0


COLD = ("analyse", "prune", "refused", "score", "load", "inspect")
"""Actions that are also tried on a model that has never run."""

ACTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "analyse": lambda model: analyse(model, IMAGES[:2], TASK),
    "prune": lambda model: ds.prune(model, IMAGES, TASK, macs=0.5),
    "prune by votes": lambda model: ds.prune(model, IMAGES, macs=0.5, method=ds.DiSparse(), refit=None),
    "refused": refused,
    "count": lambda model: count_macs(model, (IMAGES,)),
    "score": lambda model: ds.score(model, analyse(model, IMAGES[:2], TASKS), [IMAGES]),
    "apply": applied,
    "apply as graph": applied_as_graph,
    "refit": refitted,
    "extract": lambda model: extract(model, IMAGES[:2], TASKS, ["mean"]),
    "relate": lambda model: relate(model, IMAGES[:2], TASKS, [IMAGES]),
    "export": exported,
    "load": loaded,
    "load as graph": lambda model: loaded(model, "graph"),
    "inspect": inspected,
}


def leaves(value: Any, path: str, within: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Everything reachable from ``value``, with its path; containers before their contents."""
    yield path, value
    if id(value) in within:
        return
    within |= {id(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]", within)
    elif isinstance(value, list | tuple | deque):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]", within)
    elif isinstance(value, set):
        yield f"{path} set", frozenset(value)
    elif isinstance(value, Remembers):
        yield from leaves(value.value, f"{path}.value", within)
    elif isinstance(value, nn.Module):
        yield from leaves(vars(value), f"vars({path})", within)
        yield from leaves(getattr(type(value), "latest", None), f"{path}.latest", within)


def state(model: nn.Module) -> list[tuple[str, Any]]:
    everything = [model, ACTIVATIONS, GRIDS, CALLS]
    return [each for number, item in enumerate(everything) for each in leaves(item, str(number))]


def same(now: Any, before: Any) -> bool:
    plain = (int, str, bool, frozenset, tuple)
    return now is before or (type(now) is type(before) and isinstance(now, plain) and now == before)


@pytest.fixture(autouse=True)
def _fresh_globals() -> None:
    ACTIVATIONS.clear()
    GRIDS.clear()
    CALLS[0] = 0
    _ramp.cache_clear()
    HoldsObject.latest = None


@pytest.mark.parametrize(
    ("action", "warm"),
    [
        pytest.param(action, warm, id=f"{action}-{'run before' if warm else 'never run'}")
        for action in ACTIONS
        for warm in (False, True)
        if warm or action in COLD
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_out_as_it_went_in(name: str, action: str, warm: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    model.second.eval()
    model.first.weight.requires_grad_(False)
    if warm:
        model(OTHERS)
    values = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    before = state(model)

    ACTIONS[action](model)

    after = state(model)
    assert [path for path, _ in after] == [path for path, _ in before]
    for (path, now), (_, then) in zip(after, before, strict=True):
        assert same(now, then), path
        assert not isinstance(now, FakeTensor), path
    assert all(torch.equal(tensor, values[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert _ramp.cache_info().currsize <= warm


@pytest.mark.parametrize("warm", [False, True], ids=["never run", "run before"])
@pytest.mark.parametrize("name", MODELS)
def test_it_answers_fresh_inputs_as_before(name: str, warm: bool) -> None:
    torch.manual_seed(0)
    model, twin = MODELS[name]().eval(), MODELS[name]().eval()
    twin.load_state_dict(model.state_dict(), strict=False)
    if warm:
        model(OTHERS)
    ds.prune(model, IMAGES, TASK, macs=0.5, method=ds.DiSparse())

    with torch.no_grad():
        for images in (OTHERS, IMAGES, OTHERS.flip(0)):
            assert torch.equal(model(images), twin(images))


@pytest.mark.parametrize("warm", [False, True], ids=["never run", "run before"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_pruned_verified_saved_and_loaded(name: str, warm: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if warm:
        model(OTHERS)
    result = ds.prune(model, IMAGES, TASK, macs=0.5)

    assert result.report.verification.verified
    assert not result.report.refused
    assert result.report.costs["macs"].ratio <= 0.5
    result.save(tmp_path)
    loaded = ds.load(tmp_path, MODELS[name])
    with torch.no_grad():
        for images in (OTHERS, OTHERS.flip(0)):  # hooks of the result write to the result
            assert torch.allclose(loaded(images), result.model(images), atol=1e-6)
        assert not torch.allclose(result.model(OTHERS), result.model(OTHERS.flip(0)), atol=1e-6)


def test_a_thread_that_waits_for_another_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_effects, "PATIENCE", 0.01)
    model, found = Trunk().eval(), []
    thread = threading.Thread(target=lambda: found.append(analyse(model, IMAGES[:1], TASK)), name="reader")

    def wait() -> None:
        thread.start()
        thread.join(0.2)

    with side_effects.one_thread():
        with pytest.warns(DisparseWarning, match="Thread 'reader' waits for a call of disparse_structured"):
            wait()
        assert not found
    thread.join()

    assert found[0].groups
    graphs: list[Any] = []
    torch.compile(torch.sin, backend=lambda graph, _: graphs.append(graph) or graph.forward)(IMAGES)
    assert len(graphs) == 1  # neither thread has switched compiling off for good


LOCAL = threading.local()

VARIABLE: ContextVar[int] = ContextVar("calls", default=0)

OWNERS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


class HoldsValues(Trunk):
    """``forward`` changes values that are not in attributes or containers of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.sources = [random.Random(0), np.random.default_rng(0), np.random.RandomState(0)]
        self.drawing = torch.Generator().manual_seed(0)
        self.counts, self.numbers, self.bytes = np.zeros(2), array.array("d", [0.0]), bytearray(1)
        self.calls = torch.zeros(())
        self.chained: ChainMap[str, int] = ChainMap({"calls": 0})
        self.waiting: queue.Queue[int] = queue.Queue()
        self.log = Path(os.devnull).open("w")  # noqa: SIM115  (kept open, as models do)
        LOCAL.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.latest = [source.random() for source in self.sources]
        noise = torch.rand(1, generator=self.drawing)
        self.counts[0] += 1
        self.numbers[0] += 1
        self.bytes[0] = (self.bytes[0] + 1) % 256
        self.calls.add_(1)
        self.chained["calls"] += 1
        self.waiting.put(1)
        LOCAL.calls += 1
        VARIABLE.set(VARIABLE.get() + 1)
        OWNERS[self] = OWNERS.get(self, 0) + 1
        return super().forward(image) + 0 * noise

    def values(self) -> dict[str, Any]:
        python, numpy, legacy = self.sources
        return {
            "random": python.getstate(),
            "numpy": numpy.bit_generator.state,
            "legacy": [str(each) for each in legacy.get_state()],
            "torch": self.drawing.get_state().tolist(),
            "array": (self.counts.tolist(), list(self.numbers), bytes(self.bytes)),
            "tensor": float(self.calls),
            "chain": dict(self.chained),
            "queue": self.waiting.qsize(),
            "local": LOCAL.calls,
            "variable": VARIABLE.get(),
            "weak": dict(OWNERS),
        }


@pytest.mark.parametrize("action", ["analyse", "prune by votes", "refused", "load as graph", "inspect"])
def test_values_that_are_held_elsewhere_are_restored(action: str) -> None:
    torch.manual_seed(0)
    model = HoldsValues().eval()
    before = model.values()

    ACTIONS[action](model)

    after = model.values()
    for name, value in before.items():
        assert after[name] == value, name
    assert not model.log.closed


def test_what_others_write_to_meanwhile_stays() -> None:
    """A model may hold an object of another package, such as a logger, that changes in the meantime."""

    class Logger:
        __module__ = "another.package"

        def __init__(self) -> None:
            self.lines: list[str] = []

    model = Trunk().eval()
    model.logger = Logger()

    def noted(module: nn.Module, inputs: Any) -> None:
        model.logger.lines.append("called")

    model.first.register_forward_pre_hook(noted)
    ds.prune(model, IMAGES, TASK, macs=0.5, method=ds.DiSparse(), refit=None)
    assert model.logger.lines
