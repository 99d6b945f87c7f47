"""``prune``: structure, scores, votes, decision, refit, removal and report, composed."""

from disparse_structured.pipeline.checking import Check, FolderChecks, check_folder
from disparse_structured.pipeline.compensated import Compensated
from disparse_structured.pipeline.disparse import DiSparse
from disparse_structured.pipeline.inputs import EXAMPLE_SAMPLES, SAMPLES, Data
from disparse_structured.pipeline.iterative import Iterative
from disparse_structured.pipeline.method import Decided, Method, Problem, Repeatable
from disparse_structured.pipeline.pruning import prune
from disparse_structured.pipeline.quantizing import quantize
from disparse_structured.pipeline.result import PruningResult
from disparse_structured.pipeline.task_latency import TaskLatencies, TaskLatency, task_latencies
from disparse_structured.surgery.saving import save_back

__all__ = [
    "EXAMPLE_SAMPLES",
    "SAMPLES",
    "Check",
    "Compensated",
    "Data",
    "Decided",
    "DiSparse",
    "FolderChecks",
    "Iterative",
    "Method",
    "Problem",
    "PruningResult",
    "Repeatable",
    "TaskLatencies",
    "TaskLatency",
    "check_folder",
    "prune",
    "quantize",
    "save_back",
    "task_latencies",
]
