"""One rule per family of ATen operators. Importing this package registers all of them."""

from disparse_structured.structure.rules import (
    attention,
    concatenation,
    convolution,
    elementwise,
    indexing,
    matmul,
    normalization,
    recurrent,
    reduction,
    resampling,
    reshape,
    spectral,
    unfolding,
)

__all__ = [
    "attention",
    "concatenation",
    "convolution",
    "elementwise",
    "indexing",
    "matmul",
    "normalization",
    "recurrent",
    "reduction",
    "resampling",
    "reshape",
    "spectral",
    "unfolding",
]
