"""Complex weights, inputs and outputs keep their imaginary parts wherever a copy is made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import disparse_structured as ds
from disparse_structured.data.deviation import Movement
from disparse_structured.data.differences import difference
from disparse_structured.graph.copies import copied, copied_in
from disparse_structured.recovery import Distillation
from disparse_structured.scoring.probe import Probe
from disparse_structured.structure import Structure
from disparse_structured.surgery.module import cut
from disparse_structured.verification.copy import VerificationCopy, other_inputs
from disparse_structured.verification.precision import double_precision
from disparse_structured.verification.verifier import Verifier


@pytest.fixture(autouse=True)
def refuse_casts_to_real() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Casting complex values to real")
        yield


class Fourier(nn.Module):
    """A Fourier neural operator. ``casts``: forward casts the weights to what it computes in."""

    def __init__(self, casts: bool = False) -> None:
        super().__init__()
        self.casts = casts
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.w = nn.Parameter(torch.randn(16, 16, 4, 3, dtype=torch.cfloat) * 0.1)
        self.h, self.g = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x).relu()
        f = torch.fft.rfft2(y)
        o = torch.zeros(y.size(0), 16, f.size(-2), f.size(-1), dtype=f.dtype if self.casts else torch.cfloat)
        w = self.w.to(f.dtype) if self.casts else self.w
        o[:, :, :4, :3] = torch.einsum("bixy,ioxy->boxy", f[:, :, :4, :3], w)
        y = self.b(y + torch.fft.irfft2(o, s=y.shape[-2:])).relu()
        return self.h(y), self.g(y)


def bounded(z: Tensor) -> Tensor:
    return z / (1 + z.abs())


class Complex(nn.Module):
    """Layers with complex weights, whose units are complex, and a plain complex attribute."""

    phase: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mixed = torch.randn(6, 6, dtype=torch.cfloat)
        self.register_buffer("phase", torch.randn(6, dtype=torch.cfloat))
        self.a = nn.Linear(6, 32, dtype=torch.cfloat)
        self.b = nn.Linear(32, 32, dtype=torch.cfloat)
        self.near = nn.Linear(32, 4)
        self.far = nn.Linear(32, 2, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = bounded(self.a((x * self.phase) @ self.mixed))
        z = bounded(self.b(z))
        return {"near": self.near(z.abs()), "far": self.far(z)}


def build(kind: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    complex_inputs = kind is Complex
    data = torch.randn(24, 6, dtype=torch.cfloat) if complex_inputs else torch.randn(24, 3, 16, 16)
    return kind().eval(), data


METHODS: dict[str, dict[str, Any]] = {"default": {}, "votes": {"method": ds.DiSparse(), "refit": None}}


@pytest.mark.parametrize("options", METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize(
    "kind", [Fourier, lambda: Fourier(casts=True), Complex], ids=["Fourier", "casts", "Complex"]
)
def test_it_is_pruned_verified_in_float64_saved_and_loaded(
    kind: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    model, data = build(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    result = ds.prune(model, data, parameters=0.8, **options)
    result.save(tmp_path / "small")
    loaded = ds.load(tmp_path / "small", lambda: build(kind)[0])

    assert result.report.verification.dtype == "torch.float64"
    assert max(result.report.verification.deviation.values()) < 1e-9
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, tensor in result.model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert not tensor.is_complex() or tensor.imag.any(), name
    outputs = (pytree.tree_leaves(each(data)) for each in (result.model, loaded))
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)


def analysed(kind: Any) -> tuple[Any, Structure]:
    model, data = build(kind)
    return model, ds.analyse(model, data[:2])


def test_the_copy_for_verification_is_complex_in_double_precision() -> None:
    model, structure = analysed(Complex)

    reference = VerificationCopy.of(model, structure)

    assert reference.dtype is torch.float64
    for found, own in [
        (reference.model.a.weight, model.a.weight),
        (reference.model.phase, model.phase),
        (reference.model.mixed, model.mixed),
        (reference.inputs[0], structure.example_inputs[0]),
    ]:
        assert found.dtype is torch.complex128
        assert torch.equal(found, own.to(torch.complex128))
    assert model.mixed.dtype is torch.complex64


def test_other_inputs_are_complex_and_different() -> None:
    inputs = (torch.randn(1, 6, dtype=torch.cfloat),)

    (other,) = other_inputs(inputs)

    assert (other.real != inputs[0].real).all()
    assert (other.imag != inputs[0].imag).all()


def test_constant_complex_weights_are_randomized() -> None:
    model, data = build(Complex)
    nn.init.zeros_(model.b.weight)

    weight = VerificationCopy.of(model, ds.analyse(model, data[:2])).model.b.weight

    assert weight.real.any()
    assert weight.imag.any()


@pytest.mark.parametrize("kind", [Fourier, Complex])
def test_what_is_wrong_in_imaginary_parts_only_is_found(kind: Any) -> None:
    model, structure = analysed(kind)

    def wrong(model: nn.Module, structure: Structure, keep: Tensor) -> nn.Module:
        pruned: Any = cut(model, structure, keep)
        with torch.no_grad():
            (pruned.w if kind is Fourier else pruned.far.weight).imag.mul_(1.1)
        return pruned

    keep = torch.ones(structure.units, dtype=torch.bool)
    keep[0] = False

    assert Verifier(model, structure, cut).mismatch(keep) is None
    assert "deviates" in str(Verifier(model, structure, wrong).mismatch(keep))


def test_double_precision_widens_complex_types() -> None:
    values = torch.randn(3, dtype=torch.complex128)

    with double_precision():
        assert values.to(torch.complex64).dtype is torch.complex128
        assert torch.zeros(2, dtype=torch.complex64).dtype is torch.complex128


def test_complex_outputs_are_as_exact_as_real_ones() -> None:
    """A channel that is small beside the others is compared by its own size, as in float64."""
    expected = torch.tensor([[1.0, 1e-4j]], dtype=torch.complex128)

    assert difference(expected + torch.tensor([[0, 1e-8j]]), expected) == pytest.approx(1e-4)


def test_scores_are_derivatives_of_the_complex_output() -> None:
    """A unit's gate scales a complex activation: the gradient of each gate, against finite differences."""
    model, data = build(Complex)
    model, data = copied_in(model, torch.float64), data[:3].to(torch.complex128)

    def loss(output: Any, batch: Any) -> Tensor:
        return (output.real + 2 * output.imag).square().sum()

    tasks = [ds.Task("far", "far", loss=loss)]
    structure = ds.analyse(model, data, tasks)
    probe = Probe(model, structure, [data], to_inputs=lambda batch: (batch,))
    (found,) = probe.gate_gradients(per_sample=False)

    group = structure.group("b")
    gradient = found.values.sum(0)[group.slice]
    with torch.no_grad():
        z = bounded(model.b(bounded(model.a((data * model.phase) @ model.mixed))))
        step = 1e-6
        for unit in range(4):
            moved = [z.clone(), z.clone()]
            moved[0][:, unit] *= 1 + step
            moved[1][:, unit] *= 1 - step
            high, low = (loss(model.far(each), None) for each in moved)
            assert float(gradient[unit]) == pytest.approx(float(high - low) / (2 * step), rel=1e-5)


def test_a_complex_output_is_two_real_ones_to_a_criterion() -> None:
    class Parts(Complex):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"far": torch.view_as_real(super().forward(x)["far"])}

    class Whole(Complex):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"far": super().forward(x)["far"]}

    scores = []
    for kind in (Parts, Whole):
        model = build(kind)[0]
        data = build(Complex)[1]
        structure = ds.analyse(model, data[:2])
        scores.append(ds.score(model, structure, data).scores)

    assert scores[1].any()
    assert torch.allclose(*scores, rtol=1e-4)


def test_layers_with_complex_weights_are_left_out_of_the_refit_with_the_reason() -> None:
    model, data = build(Complex)

    result = ds.prune(model, data, parameters=0.6, method=ds.DiSparse())

    assert result.report.refit is not None
    reasons = {each.layer: each.reason for each in result.report.refit.skipped}
    assert reasons == dict.fromkeys(("a.weight", "b.weight", "far.weight"), "its weight is complex")
    assert [each.layer for each in result.report.refit.layers] == ["near.weight"]


def test_distillation_trains_both_parts_of_complex_weights() -> None:
    model, _ = build(Complex)
    data = torch.randn(256, 6, dtype=torch.cfloat)
    method = ds.DiSparse()

    refit = ds.prune(model, data, parameters=0.6, method=method)
    trained = ds.prune(model, data, parameters=0.6, method=method, recover=Distillation(data, steps=60))

    for name in ("b.weight", "far.weight"):
        before, after = refit.model.get_parameter(name), trained.model.get_parameter(name)
        assert after.dtype is torch.complex64
        assert not torch.isclose(after.real, before.real).all()
        assert not torch.isclose(after.imag, before.imag).all()
        assert (after - before).abs().mean() < 0.5 * before.abs().mean()


def test_the_parts_of_an_output_count_in_its_deviation() -> None:
    model, data = build(Complex)
    other: Any = copied(model)
    with torch.no_grad():
        other.far.weight.imag.mul_(2)
        found, wanted = other(data)["far"], model(data)["far"]

    moved = Movement()
    moved.add([found], [wanted])

    assert moved.deviation.whole == pytest.approx(float((found - wanted).norm() / wanted.norm()))
