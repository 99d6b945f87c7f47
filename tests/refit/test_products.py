"""Half of a Gram matrix is computed, and the whole is what it would be."""

from __future__ import annotations

import pytest
import torch

from disparse_structured.refit.products import add_products, complete


@pytest.mark.parametrize("features", [1, 7, 511, 512, 513, 1024, 1300])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_sum_of_several_products_is_that_of_all_rows(features: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(features)
    rows = torch.randint(-3, 4, (2, 12, features), generator=generator).float()
    gram = torch.zeros(2, features, features, dtype=kind)
    for part in rows.split(5, 1):
        add_products(gram, part)
    complete(gram)
    assert torch.equal(gram, (rows.mT @ rows).to(kind))
