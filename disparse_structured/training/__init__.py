"""Train all tasks together: resumable at any step, in one process or several.

>>> from disparse_structured.training import TrainingConfig, train
>>> facts = train(model, tasks, loader, TrainingConfig(epochs=10), checkpoint="run.pt")  # doctest: +SKIP

A :class:`Callback`, such as a pruning regime, is called after every step.
"""

from disparse_structured.training.config import Callback, OnEpoch, TrainingConfig, TrainingFacts
from disparse_structured.training.loop import train
from disparse_structured.training.teacher import Teacher, relative_error

__all__ = [
    "Callback",
    "OnEpoch",
    "Teacher",
    "TrainingConfig",
    "TrainingFacts",
    "relative_error",
    "train",
]
