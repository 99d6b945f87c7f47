"""Recovers accuracy without training: the remaining weights are refit to the dense network's outputs."""

from disparse_structured.refit.affine import Affine
from disparse_structured.refit.batch_norm import BatchNormStatistics
from disparse_structured.refit.context import RefitMethod
from disparse_structured.refit.deviation import measure_deviation
from disparse_structured.refit.folding import ModelFolding
from disparse_structured.refit.least_squares import LeastSquares, Refit, refit

__all__ = [
    "Affine",
    "BatchNormStatistics",
    "LeastSquares",
    "ModelFolding",
    "Refit",
    "RefitMethod",
    "measure_deviation",
    "refit",
]
