"""Procedurally rendered rooms with exact ground truth: data that ships with this package.

Five tasks, those of Tiny-Taskonomy as used by DiSparse (CVPR 2022): semantic segmentation, depth,
surface normals, edges and keypoints. Nothing is read from disk or downloaded; each seed gives one scene.

    >>> from disparse_structured.lab.scenes import render
    >>> {name: tuple(value.shape) for name, value in render(seed=0, size=(48, 64)).items()}
    {'image': (3, 48, 64), 'labels': (48, 64), 'depth': (1, 48, 64), 'normals': (3, 48, 64), \
'edges': (1, 48, 64), 'keypoints': (1, 48, 64)}
"""

from disparse_structured.lab.scenes.dataset import DEFAULT_SIZE, Scenes, render, scene_loader
from disparse_structured.lab.scenes.rays import focal_length
from disparse_structured.lab.scenes.vocabulary import HEADLINES, HEADS, TRUTHS, metrics, tasks
from disparse_structured.lab.scenes.world import CLASSES, FIELD_OF_VIEW

__all__ = [
    "CLASSES",
    "DEFAULT_SIZE",
    "FIELD_OF_VIEW",
    "HEADLINES",
    "HEADS",
    "TRUTHS",
    "Scenes",
    "focal_length",
    "metrics",
    "render",
    "scene_loader",
    "tasks",
]
