"""Getting accuracy back after pruning: without training (:func:`refit`), and with (:func:`finetune`)."""

from disparse_structured.recovery.affine import Affine
from disparse_structured.recovery.batch_norm import BatchNormStatistics
from disparse_structured.recovery.calibration import Calibration
from disparse_structured.recovery.finetune import FinetuneFacts, finetune
from disparse_structured.recovery.least_squares import LeastSquares, Refit, refit
from disparse_structured.recovery.merging import Fold
from disparse_structured.recovery.work import Method

__all__ = [
    "Affine",
    "BatchNormStatistics",
    "Calibration",
    "FinetuneFacts",
    "Fold",
    "LeastSquares",
    "Method",
    "Refit",
    "finetune",
    "refit",
]
