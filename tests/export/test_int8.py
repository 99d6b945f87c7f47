"""INT8 files of networks of all kinds: what is rounded, what is not, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import disparse_structured as ds
from disparse_structured.errors import BatchError, ExportError, OptionError, TaskError
from disparse_structured.export import export_onnx
from disparse_structured.pipeline import quantize
from disparse_structured.report.facts import LatencyFact, LatencyFacts
from disparse_structured.report.quantization import compare_latency
from tests.support.int8 import Lopsided, deviation, int8_layers, outputs_of


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, images: torch.Tensor) -> Path:
    """A float file of the two tasks of :class:`Lopsided`."""
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    names = ("rough", "fine")
    export_onnx(Lopsided().eval(), images[:2], path, outputs={name: lambda o, n=name: o[n] for name in names})
    return path


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path / "model.onnx"))


def test_layers_that_one_task_cannot_bear_stay_float(model: Path, images: torch.Tensor) -> None:
    before = model.read_bytes()
    facts = quantize(model, images, tolerance=0.15, rounds=0)

    floats = {layer.name: layer for layer in facts.layers if not layer.int8}
    hurt = max(facts.layers, key=lambda layer: layer.damage["fine"])
    assert hurt.damage["fine"] > 0.1 > hurt.damage["rough"]
    assert hurt.name in floats
    assert floats[hurt.name].reason.startswith("alone it moves fine by")
    assert 0 < len(facts.quantized) < len(facts.layers)
    assert len(facts.quantized) == int8_layers(facts.path)
    assert all(task.int8 <= task.tolerance for task in facts.tasks.values())
    assert facts.tasks["fine"].all_int8 > 0.15
    assert model.read_bytes() == before


def test_what_the_facts_say_is_what_the_file_does(model: Path, images: torch.Tensor) -> None:
    facts = quantize(model, images, tolerance=0.15, rounds=0)

    held_out = images[8:16]  # the second of three batches
    float_file, int8_file = outputs_of(model, held_out), outputs_of(facts.path, held_out)
    assert facts.checked_on == len(held_out)
    for task, fact in facts.tasks.items():
        assert fact.int8 == pytest.approx(deviation(int8_file[task], float_file[task]), rel=1e-6)
        assert fact.max_abs == pytest.approx(np.abs(int8_file[task] - float_file[task]).max(), rel=1e-6)
    assert facts.bytes == Path(facts.path).stat().st_size
    assert facts.float_bytes == model.stat().st_size


def test_the_int8_file_takes_other_batches_and_sizes(model: Path) -> None:
    images = torch.randn(17, 3, 12, 12)
    facts = quantize(model, images, rounds=0, tolerance=10.0)

    assert outputs_of(facts.path, torch.randn(1, 3, 20, 28))["fine"].shape == (1, 1, 20, 28)
    assert facts.path == str(model.with_name("model.int8.onnx"))
    written = {entry.key: entry.value for entry in onnx.load(facts.path).metadata_props}
    assert {"outputs", "dynamic", "int8"} <= written.keys()


def test_a_tolerance_of_nearly_nothing_keeps_everything_float(model: Path, images: torch.Tensor) -> None:
    facts = quantize(model, images, tolerance=1e-9, rounds=0)

    assert (facts.path, facts.bytes, facts.quantized, facts.recommended) == (None, None, (), "float")
    assert "no INT8 file was written" in str(facts)
    assert [each.name for each in model.parent.iterdir()] == [model.name]


def test_an_arbiter_of_the_user_decides(model: Path, images: torch.Tensor) -> None:
    def only_rough(ballot: ds.arbiters.Ballot) -> torch.Tensor:
        return ballot.votes[ballot.tasks.index("rough")] & ballot.reach[ballot.tasks.index("rough")]

    facts = quantize(model, images, tolerance={"fine": 10.0, "rough": 0.15}, arbiter=only_rough, rounds=0)

    assert facts.arbiter.endswith("only_rough")
    assert facts.tasks["fine"].int8 > 0.1
    assert facts.tasks["rough"].int8 <= 0.15


@pytest.mark.parametrize("name", ["AnyTask", "Majority", "Minimax", "Priority", "Unanimous", "WeightedMean"])
def test_every_arbiter_stays_within_the_tolerances(model: Path, images: torch.Tensor, name: str) -> None:
    facts = quantize(model, images, tolerance=0.15, arbiter=getattr(ds.arbiters, name)(), rounds=0)

    assert facts.arbiter.startswith(name)
    assert 0 < len(facts.quantized) < len(facts.layers)
    assert all(task.int8 <= task.tolerance for task in facts.tasks.values())


def test_latency_is_measured_in_turn_and_decides_what_is_recommended(
    model: Path, images: torch.Tensor
) -> None:
    facts = quantize(model, images, tolerance=0.15, rounds=5)

    assert facts.latency is not None
    named = {fact.name: fact for fact in facts.latency.models}
    assert list(named) == ["float", "int8", "all int8"]
    faster = named["int8"].upper_quartile_ms < named["float"].lower_quartile_ms
    assert facts.recommended == ("int8" if faster else "float")
    assert ("is faster" in facts.verdict) == faster


def timed(**quartiles: tuple[float, float]) -> LatencyFacts:
    models = tuple(
        LatencyFact(name.replace("_", " "), (low + high) / 2, low, high, 1.0, 1.0)
        for name, (low, high) in quartiles.items()
    )
    return LatencyFacts("float", models, ((1, 3, 8, 8),), 1, 30, 5, "a processor", "a runtime")


def test_verdicts_on_latency() -> None:
    assert compare_latency(timed(float=(10, 11), int8=(8, 9)))[0] == "int8"
    float_is_better = {
        "is slower than float": timed(float=(10, 11), int8=(12, 13)),
        "is not measurably faster .* the quartiles overlap": timed(float=(8, 20), int8=(7, 9)),
        "Everything in INT8 would be faster": timed(float=(10, 11), int8=(9, 12), all_int8=(7, 8)),
        "was not measured": None,
    }
    for words, latency in float_is_better.items():
        recommended, verdict = compare_latency(latency)
        assert recommended == "float"
        assert re.search(words, verdict)


class Mixed(nn.Module):
    """Grouped and transposed convolutions, gates, pooling, concatenation, a dead channel, a large bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.out = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.stem.weight[0] = 0
            self.depthwise.weight[1] = 1e-12
            self.point.weight[2] = 1e-7
            self.point.bias[2] = 100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.stem(x))
        y = nn.functional.hardswish(self.point(nn.functional.relu6(self.depthwise(x))) + x)
        pooled = nn.functional.max_pool2d(torch.cat([x, y], 1), 2)
        return self.out(self.up(pooled).relu())


def test_convolutions_of_all_kinds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    export_onnx(Mixed().eval(), images[:2], tmp_path / "model.onnx", outputs={"out": lambda y: y})

    facts = quantize(tmp_path / "model.onnx", images, tolerance=0.5, rounds=0)

    reasons = {layer.operator: layer.reason for layer in facts.layers if not layer.int8}
    assert reasons == {"ConvTranspose": "ONNX Runtime's CPU has no INT8 kernel for ConvTranspose"}
    assert len(facts.quantized) == 4
    assert facts.tasks["out"].int8 < 0.1


def test_biases_make_up_for_weights_that_are_rounded_away(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.003)  # less than half of the step of 1 / 127
        layer.weight[:, 0] = 1
    images = torch.rand(16, 16, 8, 8)
    images[:, 0] = 2 * images[:, 0] - 1
    export_onnx(layer.eval(), images[:2], tmp_path / "model.onnx", outputs={"out": lambda y: y})

    facts = quantize(tmp_path / "model.onnx", images, rounds=0)

    assert facts.biases_corrected
    assert min(facts.settings.values()) * 0.05 > 0.03 > 0.01 > facts.tasks["out"].int8


class Reader(nn.Module):
    """Token ids and a mask; an embedding, attention, a feed-forward part, two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.mix = nn.Linear(16, 16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.tags, self.topic = nn.Linear(16, 5), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.words(ids)
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        scores = query @ key.transpose(1, 2) / 4 + (1 - mask[:, None]) * -1e4
        x = x + self.mix(scores.softmax(-1) @ value)
        x = x + self.narrow(nn.functional.gelu(self.wide(x)))
        return {"tags": self.tags(x), "topic": self.topic(x.mean(1))}


def test_token_ids_and_several_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 50, (16, 6)), torch.ones(16, 6)
    mask[:, 4:] = 0
    outputs = {name: lambda o, n=name: o[n] for name in ("tags", "topic")}
    export_onnx(Reader().eval(), (ids[:2], mask[:2]), tmp_path / "model.onnx", outputs=outputs)

    facts = quantize(tmp_path / "model.onnx", {"mask": mask, "ids": ids}, tolerance=0.2, rounds=0)

    written = onnx.load(facts.path)
    tables = [node.input[0] for node in written.graph.node if node.op_type == "Gather"]
    kept = {each.name: each.data_type for each in written.graph.initializer}
    assert [kept[name] for name in tables if name in kept] == [TensorProto.FLOAT]
    assert len(facts.quantized) >= 6
    assert all(task.int8 <= 0.2 for task in facts.tasks.values())


def test_a_file_of_another_tool_with_a_fixed_batch(tmp_path: Path) -> None:
    path = _handmade(tmp_path / "other.onnx")

    facts = quantize(path, torch.randn(9, 4), rounds=0)

    assert list(facts.tasks) == ["product", "sum"]
    assert facts.calibrated_on + facts.checked_on == 9
    assert facts.path == str(tmp_path / "other.int8.onnx")
    assert len(facts.quantized) == 1


def _handmade(path: Path, opset: int = 18) -> Path:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["x", "x"], ["sum"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, w]) for n, w in (("product", 2), ("sum", 4))
    ]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def test_a_file_without_layers_stays_as_it_is(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "add.onnx")

    facts = quantize(tmp_path / "add.onnx", torch.randn(9, 4))

    assert (facts.path, facts.layers) == (None, ())
    assert "no INT8 file was written" in str(facts)


def test_what_cannot_be_quantized_is_refused_and_nothing_is_lost(
    model: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    done = quantize(model, images, rounds=0, tolerance=10.0)
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:5000])
    (tmp_path / "text.onnx").write_text("not a network")
    _handmade(tmp_path / "old.onnx", opset=11)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}

    def refused(
        kind: type[Exception], words: str, path: Path = model, data: object = images, **options: object
    ) -> None:
        with pytest.raises(kind, match=words):
            quantize(path, data, **{"rounds": 0, **options})
        assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before

    refused(ExportError, "there is no ONNX file at", tmp_path / "absent.onnx")
    refused(ExportError, "cut.onnx is not a valid ONNX file. Export", tmp_path / "cut.onnx")
    refused(ExportError, "text.onnx is not a valid ONNX file. Export", tmp_path / "text.onnx")
    refused(
        ExportError, "of opset 11. INT8 weights by channel need 13", tmp_path / "old.onnx", torch.randn(9, 4)
    )
    refused(ExportError, "is quantized already: it holds", Path(done.path))
    refused(OptionError, "tolerance=0: .*number above 0", tolerance=0)
    refused(TaskError, "tolerance names 'deep'; the tasks are", tolerance={"deep": 0.1})
    refused(OptionError, "samples=1", samples=1)
    refused(BatchError, r"1 example\(s\) are too few", data=images[:1])
    refused(BatchError, "the file takes", data={"picture": images})
    refused(BatchError, "expected|must be a tensor", data=3)
    refused(ExportError, "ONNX Runtime refuses inputs of", data=images[:, :2])


def test_weights_in_a_file_of_their_own(model: Path, images: torch.Tensor, tmp_path: Path) -> None:
    apart = tmp_path / "apart.onnx"
    options = {"save_as_external_data": True, "location": "apart.onnx.data", "size_threshold": 0}
    onnx.save(onnx.load(model), apart, **options)

    facts = quantize(apart, images, rounds=0, tolerance=10.0)

    (tmp_path / "apart.onnx.data").unlink()
    assert outputs_of(facts.path, images[:2])["rough"].shape == (2, 1, 12, 12)
    assert facts.float_bytes > model.stat().st_size / 2


def test_the_float_file_is_not_overwritten(model: Path, images: torch.Tensor) -> None:
    before = model.read_bytes()
    with pytest.raises(OptionError, match="is the float file, which is kept"):
        quantize(model, images, model, rounds=0)
    assert model.read_bytes() == before


def test_int8_kernels_run(model: Path, images: torch.Tensor, tmp_path: Path) -> None:
    facts = quantize(model, images, rounds=0, tolerance=10.0)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(facts.path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == len(facts.layers) == 4
    assert "Conv" not in kinds
