"""Shifted copies: what they are, for which inputs, and that a refit learns from them and not of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured import Task
from disparse_structured.data.calibration import Calibration
from disparse_structured.errors import OptionError
from disparse_structured.refit import LeastSquares, refit
from disparse_structured.refit.shifts import PIXELS, shifted
from disparse_structured.structure import Structure, analyse
from disparse_structured.verification.twin import masked_twin


def image(count: int, height: int = 24, width: int = 36) -> Tensor:
    return torch.randn(count, 2, height, width, generator=torch.Generator().manual_seed(5))


def is_shifted(copy: Tensor, image: Tensor) -> bool:
    """Whether the middle of ``copy`` is somewhere in ``image``."""
    height, width = image.shape[1:]
    reach = min(height, width) // 12
    inner = copy[:, reach : height - reach, reach : width - reach]
    return any(
        torch.equal(inner, image[:, reach + y : height - reach + y, reach + x : width - reach + x])
        for y in range(-reach, reach + 1)
        for x in range(-reach, reach + 1)
    )


def test_copies_are_the_images_moved() -> None:
    chunks = [(image(4),), (image(4) + 1,)]
    found = shifted(chunks, 3, seed=0)
    assert len(found) == 6
    for number, (copies,) in enumerate(found):
        originals = chunks[number % 2][0]
        assert copies.shape == originals.shape
        assert all(is_shifted(*pair) for pair in zip(copies, originals, strict=True))
    assert len({tuple(copies.flatten().tolist()) for (copies,) in found}) == 6
    again = shifted(chunks, 3, seed=0)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(found, again, strict=True))
    assert not torch.equal(shifted(chunks, 1, seed=1)[0][0], found[0][0])


@pytest.mark.parametrize(
    "chunk",
    [
        (torch.randn(4, 30),),
        (torch.randn(4, 24, 30),),
        (torch.randint(0, 255, (4, 3, 24, 24)),),
        (torch.randn(4, 3, 11, 24),),
        (image(4), torch.randn(4, 7)),
        (image(4), image(4)),
        (image(4)[0],),
    ],
    ids=["vectors", "sequences", "bytes", "tiny", "with others", "two", "unbatched"],
)
def test_what_are_no_images_alone_has_no_copies(chunk: tuple[Any, ...]) -> None:
    assert shifted([chunk, chunk], 3, seed=0) == []


def test_what_has_no_batch_stays_as_it_is() -> None:
    scale = torch.randn(9)
    ((_, kept, flag),) = shifted([(image(4), scale, True)], 1, seed=0)
    assert kept is scale
    assert flag is True


def test_many_large_images_have_fewer_copies() -> None:
    side = 512
    chunks = [(torch.zeros(2, 1, side, side),)] * (PIXELS // (2 * side * side) // 2)
    assert len(shifted(chunks, 3, seed=0)) == len(chunks)
    assert shifted(chunks * 2, 3, seed=0) == []


def test_a_refit_on_few_images_gains_from_copies() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Conv2d(24, 2, 3)
    )
    smooth = nn.functional.interpolate(torch.randn(64, 3, 5, 5), size=(24, 24), mode="bicubic")
    structure = analyse(model, smooth[:2], [Task("y", lambda output: output)])
    keep = torch.ones(structure.units, dtype=torch.bool)
    keep[: structure.units : 2] = False
    few = Calibration.of(model, smooth[:8].split(8))

    def error(shifts: int) -> float:
        done = refit(model, structure, keep, few, method=LeastSquares(shifts=shifts))
        return masked_error(done.model, model, structure, keep, smooth[8:])

    assert error(3) < error(0)


def masked_error(
    refitted: nn.Module, dense: nn.Module, structure: Structure, keep: Tensor, x: Tensor
) -> float:
    state = {name: tensor.detach() for name, tensor in refitted.state_dict().items()}
    own = {name: tensor.detach() for name, tensor in dense.state_dict().items()}
    total = square = 0.0
    for batch in x.split(2):
        (mine,) = structure.capture.run(state, (batch,), masked_twin(structure, keep))["y"]
        (wanted,) = structure.capture.run(own, (batch,))["y"]
        total += float((mine - wanted).square().sum())
        square += float(wanted.square().sum())
    return total / square


@pytest.mark.parametrize("shifts", [-1, -3])
def test_negative_numbers_of_copies_are_refused(shifts: int) -> None:
    with pytest.raises(OptionError, match=f"shifts={shifts} must be a whole number of at least 0"):
        LeastSquares(shifts=shifts)
