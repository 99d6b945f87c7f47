"""Arbiters: one rule per file. Any callable of :class:`Arbiter`'s signature is one."""

from disparse_structured.decision.arbiters.any_task import AnyTask
from disparse_structured.decision.arbiters.ballot import Arbiter, Ballot, arbitrate
from disparse_structured.decision.arbiters.majority import Majority
from disparse_structured.decision.arbiters.minimax import Minimax
from disparse_structured.decision.arbiters.priority import Priority
from disparse_structured.decision.arbiters.quorum import Quorum
from disparse_structured.decision.arbiters.tolerance import Tolerance
from disparse_structured.decision.arbiters.unanimous import Unanimous
from disparse_structured.decision.arbiters.weighted_mean import WeightedMean

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
    "arbitrate",
]
