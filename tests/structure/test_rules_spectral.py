"""Fourier transforms and complex numbers: channels can be removed, what is transformed keeps its size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.structure import analyse
from disparse_structured.tasks import Task
from tests.support.plans import Case, random_keep

TASK = [Task("out", ())]
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = 1e-9


class Net(nn.Module):
    """``how`` applied between the layers; ``filters`` are complex numbers as pairs, for each channel."""

    def __init__(self, how: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 1)
        self.filters = nn.Parameter(torch.randn(10, 8, 5, 2))
        self.out = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(self, self.second(torch.relu(self.first(x)))))


def filtered(net: Net, x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(net.filters), s=x.shape[-2:])


def magnitude_and_phase(net: Net, x: Tensor) -> Tensor:
    f = torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3))
    return torch.fft.ifft2(torch.fft.ifftshift(torch.polar(f.abs().log1p(), f.angle()), dim=(2, 3))).real


def by_parts(net: Net, x: Tensor) -> Tensor:
    f = torch.fft.rfft(x, dim=2, n=6)
    g = torch.view_as_real(torch.complex(f.real.relu(), f.imag) * f.conj())
    return torch.fft.irfft(torch.view_as_complex(g), dim=2, n=8)


@pytest.mark.parametrize("how", [filtered, magnitude_and_phase, by_parts])
def test_channels_are_removed_and_the_result_is_the_masked_twin(how: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    found = Case.of(Net(how).double().eval(), (IMAGES,), TASK)

    assert sorted(group.units for group in found.structure.groups) == [8, 10]
    for seed in range(2):
        assert found.deviation(random_keep(found.structure, seed)) <= EXACT


def test_what_is_transformed_keeps_its_size() -> None:
    structure = analyse(Net(lambda net, x: torch.fft.fft(x, dim=1).abs()).double().eval(), (IMAGES,), TASK)

    assert [group.name for group in structure.groups] == ["first"]
    assert "a Fourier transform runs along it" in {pin.reason for pin in structure.pinned}


def test_signals_are_the_examples_of_a_short_time_transform() -> None:
    class Spectrogram(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.stft(x, 16, 8, window=torch.hann_window(16, dtype=x.dtype), return_complex=True)
            return super().forward(spectrum.abs())

    model = Spectrogram(nn.Conv1d(9, 12, 3), nn.ReLU(), nn.Conv1d(12, 2, 1)).double().eval()
    found = Case.of(model, (torch.randn(2, 128, dtype=torch.float64),), TASK)

    assert not any("no rule" in pin.reason for pin in found.structure.pinned)
    assert found.deviation(random_keep(found.structure, 0)) <= EXACT
