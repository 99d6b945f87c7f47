"""Training of all tasks together: resumable at any step, on one process or several.

>>> from disparse_structured.training import Recipe, train
>>> facts = train(model, tasks, loader, Recipe(epochs=10, lr=1e-3), checkpoint="run.pt")  # doctest: +SKIP

Whatever steers the run step by step (a pruning regime, say) is a :class:`Companion`.
"""

from disparse_structured.training.distillation import Distillation, relative_error
from disparse_structured.training.loop import train
from disparse_structured.training.recipe import Companion, OnEpoch, Recipe, TrainingFacts

__all__ = ["Companion", "Distillation", "OnEpoch", "Recipe", "TrainingFacts", "relative_error", "train"]
