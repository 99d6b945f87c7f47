"""The export room on real models, real files and the real ONNX Runtime."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from disparse_structured.errors import DisparseWarning, ExportError
from disparse_structured.export import check_parity, export_onnx, measure_latency


def key(name: str) -> Callable[[Any], Any]:
    return lambda returned: returned[name]


class TwoNorms(nn.Module):
    """A shared convolution whose output two tasks normalize, each in its own way; nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.mask = nn.Conv2d(8, 2, 1)
        self.boxes = nn.Linear(8, 4)
        for seed, norm in enumerate(self.norms):
            torch.manual_seed(seed)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        shared = self.shared(x)
        left, right = (norm(shared).relu() for norm in self.norms)
        pooled = right.mean((2, 3))
        return {"mask": self.mask(left), "found": {"boxes": self.boxes(pooled), "score": [pooled.sum(1)]}}


STATIC = {"dynamic_batch": False, "dynamic_size": False}

TWO_NORMS = {
    "mask": key("mask"),
    "found": lambda returned: [returned["found"]["boxes"], returned["found"]["score"][0]],
}


class Heads(nn.Module):
    """A timm backbone with a class head and a regression head."""

    def __init__(self, backbone: str, **options: Any) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0, **options)
        self.label = nn.Linear(self.backbone.num_features, 5)
        self.angle = nn.Linear(self.backbone.num_features, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(image)
        return self.label(features), self.angle(features)


HEADS = {"label": lambda returned: returned[0], "angle": lambda returned: returned[1]}


class OneConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class FixedView(OneConv):
    """Writes its batch of two into the code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).view(2, 4, 4)


class PadsIfNeeded(OneConv):
    """Pads only sizes that are no multiple of four: traced at one that is, the padding is gone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        if height % 4 or width % 4:
            x = nn.functional.pad(x, (0, -width % 4, 0, -height % 4))
        return self.conv(x)


class AsksTheData(OneConv):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 1000:
            return self.conv(-x)
        return self.conv(x)


class ImageAndWord(nn.Module):
    """Two images of which one is half as large, indices into two tables, and an input that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.large = nn.Embedding(10, 4)
        self.small = nn.Embedding(3, 4)

    def forward(
        self, full: torch.Tensor, half: torch.Tensor, word: torch.Tensor, spare: torch.Tensor
    ) -> torch.Tensor:
        words = self.large(word[:, 0]) + self.small(word[:, 1])
        return self.conv(full)[..., ::2, ::2] + self.conv(half) + words[:, :, None, None]


class ChannelsLast(nn.Module):
    """An image and a sequence of vectors; their last dimensions are the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

    def forward(self, picture: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        return self.conv(picture.permute(0, 3, 1, 2)).mean((2, 3)) + self.linear(sound).amax(1)


class ImageAndColor(nn.Module):
    """Two inputs of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.conv(a - 2 * b[:, :, None, None])


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


def whole(returned: Any) -> Any:
    return returned


def image(*shape: int) -> tuple[torch.Tensor]:
    return (torch.randn(*shape),)


def files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run(path: Path, *inputs: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return dict(zip(names, session.run(None, feed), strict=True))


@pytest.fixture(scope="module")
def two_norms(tmp_path_factory: pytest.TempPathFactory) -> tuple[TwoNorms, Path]:
    torch.manual_seed(0)
    model = TwoNorms().eval()
    path = tmp_path_factory.mktemp("two_norms") / "model.onnx"
    export_onnx(model, image(1, 3, 16, 24), path, outputs=TWO_NORMS)
    return model, path


def test_one_file_with_outputs_named_by_task_and_everything_dynamic(tmp_path: Path) -> None:
    model = TwoNorms()
    facts = export_onnx(model, image(1, 3, 16, 24), tmp_path / "new" / "m.onnx", outputs=TWO_NORMS)

    assert files(tmp_path / "new") == ["m.onnx"]
    assert [output.name for output in facts.outputs] == ["mask", "found.0", "found.1"]
    assert [(value.name, value.dtype, value.shape) for value in facts.inputs] == [
        ("x", "float32", ("batch", 3, "height", "width"))
    ]
    assert (facts.dynamic, facts.narrowed, facts.unchecked) == ("batch+size", (), ())
    assert facts.bytes == (tmp_path / "new" / "m.onnx").stat().st_size
    assert not facts.external_data

    x = torch.randn(5, 3, 33, 20)
    found, wanted = run(tmp_path / "new" / "m.onnx", x), model.eval()(x)
    np.testing.assert_allclose(found["mask"], wanted["mask"].detach(), atol=1e-5)
    np.testing.assert_allclose(found["found.0"], wanted["found"]["boxes"].detach(), atol=1e-5)
    np.testing.assert_allclose(found["found.1"], wanted["found"]["score"][0].detach(), atol=1e-5)


def test_facts_are_json_and_cover_batches_and_sizes_that_were_not_traced(tmp_path: Path) -> None:
    checks = [image(4, 3, 16, 24), image(1, 3, 20, 20)]
    facts = export_onnx(
        TwoNorms(), image(1, 3, 16, 24), tmp_path / "m.onnx", outputs=TWO_NORMS, check_inputs=checks
    )
    shapes = {fact.input_shapes[0] for fact in facts.parity}
    assert {(n, 3, 16, 24) for n in (1, 2, 3, 4)} | {(1, 3, 20, 20)} < shapes
    assert any(shape[2] % 2 and shape[2] > 16 for shape in shapes)
    assert {fact.task for fact in facts.parity} == {"mask", "found"}
    assert all(fact.max_rel <= 1e-4 and fact.batch == fact.input_shapes[0][0] for fact in facts.parity)
    assert json.loads(json.dumps(dataclasses.asdict(facts)))["dynamic"] == "batch+size"


def test_the_model_is_bit_identical_afterwards(tmp_path: Path) -> None:
    model = TwoNorms().train()
    model.norms[0].eval()
    model.shared.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    x = image(2, 3, 16, 16)
    x_before = x[0].clone()

    export_onnx(model, x, tmp_path / "m.onnx", outputs=TWO_NORMS, dynamic_size=False)
    check_parity(model, tmp_path / "m.onnx", [x], outputs=TWO_NORMS)

    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert not model.shared.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(x[0], x_before)


def test_a_timm_backbone_with_heads_is_dynamic(tmp_path: Path) -> None:
    facts = export_onnx(Heads("resnet10t"), image(1, 3, 32, 32), tmp_path / "m.onnx", outputs=HEADS)
    assert facts.dynamic == "batch+size"
    assert [(value.name, value.shape) for value in facts.outputs] == [
        ("label", ("batch", 5)),
        ("angle", ("batch", 1)),
    ]


def test_a_fixed_size_falls_back_to_a_free_batch_and_says_why(tmp_path: Path) -> None:
    model = Heads("vit_tiny_patch16_224", img_size=32, depth=2)
    facts = export_onnx(
        model,
        image(1, 3, 32, 32),
        tmp_path / "m.onnx",
        outputs=HEADS,
        check_inputs=[image(4, 3, 32, 32), image(1, 3, 48, 48)],
    )
    assert facts.dynamic == "batch"
    assert facts.inputs[0].shape == ("batch", 3, 32, 32)
    assert re.fullmatch(r"batch\+size: PyTorch refuses inputs of .*Input height.*", facts.narrowed[0])
    assert facts.unchecked == ("check input 1: inputs of 1x3x48x48 do not fit inputs of 1x3x32x32",)
    assert 4 in {fact.batch for fact in facts.parity}


def test_a_batch_in_the_code_falls_back_to_static_and_cuts_the_check_inputs(tmp_path: Path) -> None:
    facts = export_onnx(
        FixedView(),
        image(2, 3, 8, 8),
        tmp_path / "m.onnx",
        outputs={"all": whole},
        check_inputs=[image(5, 3, 8, 8)],
    )
    assert facts.dynamic == "static"
    assert facts.inputs[0].shape == (2, 3, 8, 8)
    assert [line.partition(":")[0] for line in facts.narrowed] == ["batch+size", "batch"]
    assert "PyTorch refuses inputs of 1x3x8x8: RuntimeError" in facts.narrowed[1]
    assert len(facts.parity) == 4  # the example, other samples, and two pairs out of the five
    assert facts.unchecked == ("check input 0: its last 1 samples do not fill a batch",)


def test_a_size_that_the_file_gets_wrong_is_not_left_free(tmp_path: Path) -> None:
    facts = export_onnx(PadsIfNeeded(), image(1, 3, 8, 8), tmp_path / "m.onnx", outputs={"all": whole})
    assert facts.dynamic == "batch"
    assert "in ONNX Runtime, but float32" in facts.narrowed[0]


class Attends(nn.Module):
    """Fused attention of heads that lie in dimensions ``lead``, with a mask or a causal one."""

    def __init__(self, lead: tuple[int, ...], mask: str) -> None:
        super().__init__()
        self.lead, self.mask = lead, mask
        self.qkv = nn.Linear(6, 3 * 4 * math.prod(lead))
        self.bias = nn.Parameter(torch.randn(*(lead[-1:] if mask == "heads" else ()), 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(x).unflatten(2, (3, *self.lead, 4)).movedim(1, -2)
        options: dict[str, Any] = {"is_causal": True} if self.mask == "causal" else {}
        if self.mask in ("heads", "tokens"):
            options["attn_mask"] = self.bias
        elif self.mask == "booleans":
            options["attn_mask"] = self.bias.abs() < 1.5
        return F.scaled_dot_product_attention(*heads.unbind(1), **options).movedim(-2, 1).flatten(2)


class AttendsWithEveryMask(nn.ModuleDict):
    """One :class:`Attends` a mask, side by side on the same tokens."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {mask: attends(x) for mask, attends in self.items()}


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_attention_of_any_rank(lead: tuple[int, ...], tmp_path: Path) -> None:
    masks = ["none", "heads", "tokens", "booleans", "causal"]
    if not lead:
        masks.remove("heads")
    facts = export_onnx(
        AttendsWithEveryMask({mask: Attends(lead, mask) for mask in masks}).eval(),
        (torch.randn(2, 5, 6),),
        tmp_path / "model.onnx",
        outputs={mask: key(mask) for mask in masks},
        dynamic_size=False,
    )

    assert facts.dynamic == "batch"
    assert {fact.task for fact in facts.parity} == set(masks)


def test_several_inputs_of_several_types(tmp_path: Path) -> None:
    example = (torch.randn(1, 3, 16, 16), torch.randn(1, 3, 8, 8), torch.tensor([[9, 2]]), torch.randn(7))
    facts = export_onnx(ImageAndWord(), example, tmp_path / "m.onnx", outputs={"all": whole})
    assert facts.dynamic == "batch+size"
    assert [(value.name, value.dtype) for value in facts.inputs] == [
        ("full", "float32"),
        ("half", "float32"),
        ("word", "int64"),
        ("spare", "float32"),
    ]
    assert facts.inputs[2].shape == ("batch", "length")
    assert facts.inputs[3].shape == (7,)


def test_channels_may_come_last(tmp_path: Path) -> None:
    model = ChannelsLast().eval()
    example = (torch.randn(1, 8, 9, 3), torch.randn(1, 7, 5))
    facts = export_onnx(model, example, tmp_path / "m.onnx", outputs={"all": whole})

    assert [value.shape for value in facts.inputs] == [
        ("batch", "height", "width", 3),
        ("batch", "length", 5),
    ]
    others = torch.randn(2, 11, 6, 3), torch.randn(2, 4, 5)
    found = run(tmp_path / "m.onnx", *others)["all"]
    np.testing.assert_allclose(found, model(*others).detach().numpy(), atol=1e-5)


def test_inputs_by_name_come_in_any_order(tmp_path: Path) -> None:
    model = ImageAndColor()
    (a, c), (b, d) = torch.randn(2, 1, 3, 8, 8), torch.randn(2, 1, 3)
    facts = export_onnx(
        model,
        {"b": b, "a": a},
        tmp_path / "m.onnx",
        outputs={"all": whole},
        check_inputs=[{"b": d, "a": c}, {"a": a, "b": d}],
    )
    parity = check_parity(model, tmp_path / "m.onnx", [{"b": b, "a": c}], outputs={"all": whole})

    assert [value.name for value in facts.inputs] == ["a", "b"]
    assert max(fact.max_abs for fact in (*facts.parity, *parity)) <= 1e-5
    found = run(tmp_path / "m.onnx", a, b)["all"]
    np.testing.assert_allclose(found, model(a, b).detach().numpy(), atol=1e-5)


def test_what_is_not_asked_for_is_static(tmp_path: Path) -> None:
    facts = export_onnx(
        OneConv(),
        image(1, 3, 8, 8),
        tmp_path / "m.onnx",
        outputs={"all": whole},
        **STATIC,
    )
    assert (facts.dynamic, facts.inputs[0].shape) == ("static", (1, 3, 8, 8))
    assert facts.narrowed == ("batch: not requested", "size: not requested")


def test_a_task_called_like_an_input_or_giving_the_input_itself(tmp_path: Path) -> None:
    outputs = {"x": whole, "y": whole}
    with pytest.warns(DisparseWarning, match="'x' has the name of an input, which becomes 'x_input'"):
        facts = export_onnx(OneConv(), image(1, 3, 8, 8), tmp_path / "m.onnx", outputs=outputs)
    assert [value.name for value in facts.inputs] == ["x_input"]
    assert [value.name for value in facts.outputs] == ["x", "y"]


class Operators(nn.Module):
    """Operators whose values have the names of the operators in the file, and an initializer as an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))

    def compute(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = self.conv(x).relu().mean((2, 3))
        found = self.head(torch.cat([pooled, y], 1)) * self.scale
        return found, found.view(-1, 3) + 1, self.scale


def with_parameters(first: str, second: str) -> nn.Module:
    """A model whose ``forward`` has parameters of these names."""
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {first}, {second}): return self.compute({first}, {second})", scope)
    return type("Named", (Operators,), {"forward": scope["forward"]})()


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (("cat", "conv2d"), ("a", "b", "c")),
        (("linear", "mul"), ("add", "view", "relu")),
        (("x", "relu"), ("conv2d", "cat", "mean")),
        (("val_0", "val_3"), ("val_1", "mul", "linear")),
        (("x", "y"), ("head.weight", "conv.weight", "head.bias")),
        (("x", "y"), ("scale", "head.bias", "conv.weight")),
        (("inputs_1", "inputs_0"), ("model.head.bias", "model.scale", "scale")),
    ],
)
def test_inputs_and_outputs_keep_their_names_whatever_else_is_called_so(
    inputs: tuple[str, str], outputs: tuple[str, str, str], tmp_path: Path
) -> None:
    model, given = with_parameters(*inputs), (torch.randn(2, 3, 8, 8), torch.randn(2, 4))
    picks = {name: (lambda returned, at=at: returned[at]) for at, name in enumerate(outputs)}

    facts = export_onnx(model, given, tmp_path / "m.onnx", outputs=picks)

    assert [value.name for value in facts.inputs] == list(inputs)
    assert [value.name for value in facts.outputs] == list(outputs)
    found = run(tmp_path / "m.onnx", *given)
    for name, wanted in zip(outputs, model(*given), strict=True):
        np.testing.assert_allclose(found[name], wanted.detach().numpy(), atol=1e-5)


def test_an_input_never_takes_the_name_of_another(tmp_path: Path) -> None:
    model, given = with_parameters("x", "x_input"), (torch.randn(2, 3, 8, 8), torch.randn(2, 4))
    with pytest.warns(DisparseWarning, match="'x' has the name of an input, which becomes 'x_input_input'"):
        facts = export_onnx(model, given, tmp_path / "m.onnx", outputs={"x": lambda returned: returned[0]})
    assert [value.name for value in facts.inputs] == ["x_input_input", "x_input"]


def test_metadata_is_in_the_file_without_traces_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    facts = export_onnx(
        OneConv(), image(1, 3, 8, 8), path, outputs={"all": whole}, metadata={"plan": "0123abc"}
    )
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert found == facts.metadata
    assert found["plan"] == "0123abc"
    assert json.loads(found["outputs"]) == {"all": ["all"]}
    assert found["torch"] == torch.__version__
    assert found["onnx"] == onnx.__version__
    assert {"dynamic", "disparse-structured"} <= set(found)
    assert str(Path(__file__).parent).encode() not in path.read_bytes()


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model, x = OneConv(), image(1, 3, 8, 8)
    first = export_onnx(model, x, tmp_path / "a.onnx", outputs={"all": whole}, dynamic_size=False)
    second = export_onnx(model, x, tmp_path / "b.onnx", outputs={"all": whole}, dynamic_size=False)
    assert first.sha256 == second.sha256


def test_large_weights_are_written_beside_the_file_that_finds_them(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(64, 64)), image(1, 64)
    facts = export_onnx(model, x, tmp_path / "m.onnx", outputs={"all": whole}, single_file_bytes=1000)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert facts.external_data
    assert facts.bytes == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    check_parity(model, tmp_path / "m.onnx", [image(3, 64)], outputs={"all": whole})


def test_the_console_stays_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("torch", "onnxscript", "onnx_ir"):
        logging.getLogger(name).addHandler(caplog.handler)
    export_onnx(TwoNorms(), image(1, 3, 16, 16), tmp_path / "m.onnx", outputs=TWO_NORMS)
    with pytest.raises(ExportError):
        export_onnx(AsksTheData(), image(1, 3, 8, 8), tmp_path / "n.onnx", outputs={"all": whole}, **STATIC)
    for name in ("torch", "onnxscript", "onnx_ir"):
        logging.getLogger(name).removeHandler(caplog.handler)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not logging.root.manager.disable


def test_what_torch_cannot_export_says_torchs_reason_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_onnx(AsksTheData(), image(1, 3, 8, 8), tmp_path / "m.onnx", outputs={"all": whole})
    text = str(caught.value)
    assert text.startswith(f"AsksTheData was not exported, nothing was written to {tmp_path / 'm.onnx'}: ")
    assert "data-dependent" in text
    assert "if x.mean() > 1000:" in text
    assert text.count("data-dependent") == 1
    assert files(tmp_path) == []


class FailsWhileCollecting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not (torch.compiler.is_exporting() and gc.isenabled())
        return x + 1


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_meanwhile_and_afterwards_as_before(enabled: bool, tmp_path: Path) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        export_onnx(
            FailsWhileCollecting(), image(1, 3, 8, 8), tmp_path / "m.onnx", outputs={"all": whole}, **STATIC
        )
        assert gc.isenabled() == enabled
        with pytest.raises(ExportError):
            export_onnx(
                AsksTheData(), image(1, 3, 8, 8), tmp_path / "n.onnx", outputs={"all": whole}, **STATIC
            )
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_failed_export_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"older")
    with pytest.raises(ExportError, match="nothing was written"):
        export_onnx(AsksTheData(), image(1, 3, 8, 8), path, outputs={"all": whole}, **STATIC)
    assert path.read_bytes() == b"older"
    assert files(tmp_path) == ["m.onnx"]


def test_a_difference_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"ONNX Runtime differs from PyTorch on .*task 'mask': max abs"):
        export_onnx(
            TwoNorms(), image(1, 3, 16, 16), tmp_path / "m.onnx", outputs=TWO_NORMS, tolerance=0.0, **STATIC
        )
    assert files(tmp_path) == []


def perturb(path: Path, target: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(path)
    (found,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    before = onnx.numpy_helper.to_array(found)
    values = np.asarray(change(before.copy()), before.dtype)  # NumPy 1 widens scalars
    found.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, target)


def test_parity_reports_both_errors_as_defined(two_norms: tuple[TwoNorms, Path], tmp_path: Path) -> None:
    model, path = two_norms
    perturb(path, tmp_path / "m.onnx", "model.mask.bias", lambda bias: bias + 0.5)
    x = torch.randn(2, 3, 16, 16)
    facts = check_parity(model, tmp_path / "m.onnx", [(x,)], outputs=TWO_NORMS, tolerance=10.0)
    by_task = {fact.task: fact for fact in facts}
    assert by_task["mask"].max_abs == pytest.approx(0.5, rel=1e-4)
    mask = model(x)["mask"].abs()
    scale = min(mask.amax((0, 2, 3)).min(), mask.amax((0, 1, 2)).min()).item()
    assert by_task["mask"].max_rel == pytest.approx(0.5 / scale, rel=1e-4)
    assert by_task["found"].max_rel < 1e-5


def test_parity_of_a_changed_file_names_the_task_and_only_that(
    two_norms: tuple[TwoNorms, Path], tmp_path: Path
) -> None:
    model, path = two_norms
    perturb(path, tmp_path / "m.onnx", "model.boxes.bias", lambda bias: bias * 1.5)
    batches = [image(1, 3, 16, 16), image(3, 3, 32, 16)]
    pattern = r"differs from PyTorch on inputs of 1x3x16x16: task 'found': max abs \S+, max rel \S+ \(toler"
    with pytest.raises(ExportError, match=pattern) as caught:
        check_parity(model, tmp_path / "m.onnx", batches, outputs=TWO_NORMS)
    assert "tolerance 0.0001" in str(caught.value)
    assert "'mask'" not in str(caught.value)
    assert len(check_parity(model, path, batches, outputs=TWO_NORMS)) == 4


class Amplifies(nn.Module):
    """Its result in float32 has few right digits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(1e4 * x)


def test_a_difference_stands_beside_the_rounding_of_pytorch_itself(tmp_path: Path) -> None:
    model, x = Amplifies(), image(1, 3, 16, 16)
    path = tmp_path / "m.onnx"
    export_onnx(model, x, path, outputs={"all": whole}, tolerance=1.0, **STATIC)
    with torch.no_grad():
        exact = model(*(tensor.double() for tensor in x))
        rounding = (model(*x) - exact).abs().max() / exact.abs().max()
    assert rounding > 1e-4
    perturb(path, path, "val_0", lambda factor: factor * 2)
    with pytest.raises(ExportError, match="max rel") as caught:
        check_parity(model, path, [x], outputs={"all": whole})
    assert f"PyTorch's own rounding, against float64: 'all' {rounding:.1g}." in str(caught.value)


class AmplifiesLess(nn.Module):
    """Its float32 result is further from float64 than the default tolerance."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(3e3 * x) + self.bias


def test_an_error_like_that_of_pytorch_itself_passes_and_a_larger_one_does_not(tmp_path: Path) -> None:
    model, x = AmplifiesLess(), image(1, 3, 16, 16)
    path, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    export_onnx(model, x, path, outputs={"all": whole}, **STATIC)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x[0].double())
        own = float((model(*x) - exact).abs().max())
    assert own > 1.2e-4 * float(exact.abs().max())
    perturb(path, other, "model.bias", lambda bias: bias + np.float32(1.5 * own))
    (fact,) = check_parity(model, other, [x], outputs={"all": whole})
    assert fact.max_abs > 1e-4 * float(exact.abs().max())
    perturb(path, other, "model.bias", lambda bias: bias + np.float32(3 * own))
    with pytest.raises(ExportError, match="PyTorch's own rounding"):
        check_parity(model, other, [x], outputs={"all": whole})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parity_refuses_what_is_not_finite(
    two_norms: tuple[TwoNorms, Path], tmp_path: Path, value: float
) -> None:
    model, path = two_norms
    perturb(path, tmp_path / "m.onnx", "model.mask.bias", lambda bias: np.full_like(bias, value))
    x = image(1, 3, 16, 16)
    with pytest.raises(ExportError, match=r"output 'mask' has NaN or infinite values in ONNX Runtime"):
        check_parity(model, tmp_path / "m.onnx", [x], outputs=TWO_NORMS)
    broken = copy.deepcopy(model)
    nn.init.constant_(broken.mask.bias, value)
    with pytest.raises(ExportError, match=r"output 'mask' has NaN or infinite values in PyTorch"):
        check_parity(broken, path, [x], outputs=TWO_NORMS)


def test_parity_of_integers_is_exact_or_an_error(tmp_path: Path) -> None:
    model, x = OneConv(), image(2, 3, 16, 16)
    classes = {"class": lambda returned: returned.argmax(1)}
    facts = export_onnx(model, x, tmp_path / "m.onnx", outputs=classes)
    assert facts.outputs[0].dtype == "int64"
    assert {fact.max_abs for fact in facts.parity} == {0.0}
    shifted = {"class": lambda returned: returned.argmax(1) + 1}
    with pytest.raises(ExportError, match="task 'class': max abs 1,"):
        check_parity(model, tmp_path / "m.onnx", [x], outputs=shifted)


def test_parity_refuses_other_outputs_and_other_inputs(two_norms: tuple[TwoNorms, Path]) -> None:
    model, path = two_norms
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ExportError, match=r"has the outputs .* but the tasks give \['mask'\]"):
        check_parity(model, path, [(x,)], outputs={"mask": key("mask")})
    with pytest.raises(ExportError, match="PyTorch refuses inputs of 1x4x16x16: RuntimeError"):
        check_parity(model, path, [(torch.randn(1, 4, 16, 16),)], outputs=TWO_NORMS)
    with pytest.raises(ExportError, match="no batch to compare on"):
        check_parity(model, path, [], outputs=TWO_NORMS)
    with pytest.raises(ExportError, match="no ONNX file at"):
        check_parity(model, path.with_name("other.onnx"), [(x,)], outputs=TWO_NORMS)


def test_half_precision_runs_in_its_own_type(tmp_path: Path) -> None:
    x = (torch.randn(1, 3, 16, 16).half(),)
    facts = export_onnx(OneConv().half(), x, tmp_path / "m.onnx", outputs={"all": whole}, tolerance=1e-2)
    assert facts.inputs[0].dtype == facts.outputs[0].dtype == "float16"


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float64, r"ONNX Runtime cannot load .*export model\.float\(\)"),
        (torch.bfloat16, r"bfloat16 tensors, .*Export model\.float\(\)"),
    ],
)
def test_precisions_that_the_runtime_lacks(tmp_path: Path, dtype: torch.dtype, message: str) -> None:
    x = (torch.randn(1, 3, 16, 16, dtype=dtype),)
    with pytest.raises(ExportError, match=message):
        export_onnx(OneConv().to(dtype), x, tmp_path / "m.onnx", outputs={"all": whole}, **STATIC)
    assert files(tmp_path) == []


X = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_inputs": ()}, "do not fit OneConv.forward: missing a required argument: 'x'"),
        ({"example_inputs": (3,)}, "example_inputs must hold a tensor, found tuple"),
        ({"example_inputs": (X, 3)}, "do not fit OneConv.forward: too many positional arguments"),
        ({"example_inputs": (X[:0],)}, r"input 0 of shape \(0, 3, 8, 8\) is empty"),
        ({"example_inputs": (X[:, :2],)}, "PyTorch refuses inputs of 1x2x8x8: RuntimeError"),
        ({"outputs": {}}, "no output was named"),
        ({"outputs": {"all": lambda _: 3}}, "task 'all' picks a int"),
        ({"outputs": {"all": lambda _: [X, "x"]}}, "task 'all' picks a list that holds a str"),
        ({"outputs": {"a": lambda y: [y, y], "a.1": whole}}, r"two tasks give an output named 'a\.1'"),
        ({"metadata": {"torch": "1"}}, "metadata key 'torch' is written by the export itself"),
        ({"metadata": {"epochs": 3}}, "metadata 'epochs': ONNX holds strings only, found a int"),
        ({"check_inputs": [(X.double(),)]}, r"check_inputs\[0\] has the types \[torch.float64\]"),
        ({"check_inputs": [(torch.full_like(X, torch.nan),)]}, "NaN or infinite values"),
    ],
)
def test_bad_arguments_are_named_and_leave_no_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"example_inputs": (X,), "outputs": {"all": whole}, **STATIC} | changes
    with pytest.raises(ExportError, match=message):
        export_onnx(OneConv(), path=tmp_path / "m.onnx", **arguments)
    assert files(tmp_path) == []


def test_a_folder_is_not_a_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a folder"):
        export_onnx(OneConv(), (X,), tmp_path, outputs={"all": whole})


def test_latency_says_what_was_timed_and_on_what(two_norms: tuple[TwoNorms, Path]) -> None:
    _, path = two_norms
    facts = measure_latency(
        {"dense": path, "pruned": path}, image(2, 3, 16, 16), threads=2, rounds=7, warmup=1
    )
    assert (facts.reference, facts.threads, facts.rounds, facts.warmup) == ("dense", 2, 7, 1)
    assert [model.name for model in facts.models] == ["dense", "pruned"]
    assert facts.input_shapes == ((2, 3, 16, 16),)
    assert facts.cpu
    assert facts.runtime == f"onnxruntime {onnxruntime.__version__}"
    dense, pruned = facts.models
    for model in facts.models:
        assert 0 < model.lower_quartile_ms <= model.median_ms <= model.upper_quartile_ms
    assert (dense.speedup, dense.paired_speedup) == (1.0, 1.0)
    assert pruned.speedup == pytest.approx(dense.median_ms / pruned.median_ms)
    json.dumps(dataclasses.asdict(facts))


def test_latency_refuses_what_it_cannot_time(
    two_norms: tuple[TwoNorms, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    _, path = two_norms
    x = image(1, 3, 16, 16)
    with pytest.raises(ExportError, match="nothing to time"):
        measure_latency({}, x)
    with pytest.raises(ExportError, match="rounds=0"):
        measure_latency({"dense": path}, x, rounds=0)
    with pytest.raises(ExportError, match="no ONNX file at"):
        measure_latency({"dense": path.with_name("other.onnx")}, x)
    with pytest.raises(ExportError, match="ONNX Runtime refuses inputs of 1x4x16x16"):
        measure_latency({"dense": path}, image(1, 4, 16, 16))
    with pytest.raises(ExportError, match=r"takes 1 inputs \['x'\], but 2 were given"):
        measure_latency({"dense": path}, (*x, *x))
    fails_while_running = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 3] x) => (float[rows, 2] y) '
        "<int64[2] shape = {-1, 2}> { y = Reshape(x, shape) }"
    )
    onnx.save(fails_while_running, path.with_name("fails.onnx"))
    with pytest.raises(ExportError, match=r"ONNX Runtime refuses inputs of 1x3: .*Reshape"):
        measure_latency({"dense": path.with_name("fails.onnx")}, image(1, 3))
    assert capfd.readouterr() == ("", "")
