"""Relatedness: the tasks' kept sets as a map of what the tasks share (DiSparse, CVPR 2022, §5).

Every task keeps the same share of what it reaches, as if it were alone. Where the kept sets agree, the
tasks are related. The layer from which on they part is the *watershed*::

    found = relate(model, example_inputs, tasks, data, level="unit", ratio=0.7, seeds=range(5))
    print(found)
    draw_layers("layers.png", [found])
"""

from disparse_structured.relatedness.clusters import Merge
from disparse_structured.relatedness.figures import draw_affinity, draw_layers
from disparse_structured.relatedness.fresh import fresh
from disparse_structured.relatedness.overlap import KeptSets, overlap
from disparse_structured.relatedness.published import PUBLISHED, RATIO, Published
from disparse_structured.relatedness.relate import relate
from disparse_structured.relatedness.result import Layer, Level, Relatedness, SeedRun
from disparse_structured.relatedness.units import UNIT_RATIO, unit_sets
from disparse_structured.relatedness.watershed import Split, Watershed, split, watershed
from disparse_structured.relatedness.weights import weight_sets

__all__ = [
    "PUBLISHED",
    "RATIO",
    "UNIT_RATIO",
    "KeptSets",
    "Layer",
    "Level",
    "Merge",
    "Published",
    "Relatedness",
    "SeedRun",
    "Split",
    "Watershed",
    "draw_affinity",
    "draw_layers",
    "fresh",
    "overlap",
    "relate",
    "split",
    "unit_sets",
    "watershed",
    "weight_sets",
]
