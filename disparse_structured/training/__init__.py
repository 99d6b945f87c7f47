"""Training of all tasks together: resumable at any step, on one process or several.

>>> from disparse_structured.training import TrainingConfig, train
>>> facts = train(model, tasks, loader, TrainingConfig(epochs=10), checkpoint="run.pt")  # doctest: +SKIP

Whatever steers the run step by step (a pruning regime, say) is a :class:`Callback`.
"""

from disparse_structured.training.distillation import Distillation, relative_error
from disparse_structured.training.loop import train
from disparse_structured.training.recipe import Callback, OnEpoch, TrainingConfig, TrainingFacts

__all__ = [
    "Callback",
    "Distillation",
    "OnEpoch",
    "TrainingConfig",
    "TrainingFacts",
    "relative_error",
    "train",
]
