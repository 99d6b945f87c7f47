"""The whole composition: structure, saliency, votes, arbitration, budget, refit, surgery, report."""

from disparse_structured.pipeline.calibrating import EXAMPLE_SAMPLES, SAMPLES, calibrate
from disparse_structured.pipeline.prune import prune
from disparse_structured.pipeline.pruned import Pruned, report_on
from disparse_structured.pipeline.shrink import shrink

__all__ = [
    "EXAMPLE_SAMPLES",
    "SAMPLES",
    "Pruned",
    "calibrate",
    "prune",
    "report_on",
    "shrink",
]
