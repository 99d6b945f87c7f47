"""Readers for NYU-v2, Cityscapes and Tiny-Taskonomy as distributed, and their tasks.

A reader returns a torch data set of dicts ``{"image": ..., task: ...}``. ``nyuv2_tasks()`` and the like give
each task's width, loss, metric and published weight. Nothing is downloaded.
"""

from disparse_structured.lab.datasets.cityscapes import cityscapes, cityscapes_adashare, cityscapes_mtan
from disparse_structured.lab.datasets.nyuv2 import nyuv2_adashare, nyuv2_mtan
from disparse_structured.lab.datasets.samples import Samples
from disparse_structured.lab.datasets.taskonomy import TINY, taskonomy, taskonomy_adashare
from disparse_structured.lab.datasets.tasks import (
    TargetLoss,
    TaskSpec,
    cityscapes_tasks,
    dataset_tasks,
    evaluate,
    figure_of_merit,
    nyuv2_tasks,
    taskonomy_tasks,
)

__all__ = [
    "TINY",
    "Samples",
    "TargetLoss",
    "TaskSpec",
    "cityscapes",
    "cityscapes_adashare",
    "cityscapes_mtan",
    "cityscapes_tasks",
    "dataset_tasks",
    "evaluate",
    "figure_of_merit",
    "nyuv2_adashare",
    "nyuv2_mtan",
    "nyuv2_tasks",
    "taskonomy",
    "taskonomy_adashare",
    "taskonomy_tasks",
]
