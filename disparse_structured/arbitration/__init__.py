"""Arbiters: one rule a file. Any callable of :class:`Arbiter`'s signature is one."""

from disparse_structured.arbitration.any_task import AnyTask
from disparse_structured.arbitration.ballot import Arbiter, Ballot, decide
from disparse_structured.arbitration.majority import Majority
from disparse_structured.arbitration.minimax import Minimax
from disparse_structured.arbitration.priority import Priority
from disparse_structured.arbitration.quorum import Quorum
from disparse_structured.arbitration.tolerance import Tolerance
from disparse_structured.arbitration.unanimous import Unanimous
from disparse_structured.arbitration.weighted_mean import WeightedMean

__all__ = [
    "AnyTask",
    "Arbiter",
    "Ballot",
    "Majority",
    "Minimax",
    "Priority",
    "Quorum",
    "Tolerance",
    "Unanimous",
    "WeightedMean",
    "decide",
]
