"""What the result may cost, and the search for the common ratio that gets there."""

from disparse_structured.decision.budget.limits import Budget
from disparse_structured.decision.budget.search import (
    DEFAULT_ARBITER,
    DEFAULT_RANKING,
    TOLERANCE,
    Decision,
    make_plan,
    plan_of,
    search,
    smallest,
)

__all__ = [
    "DEFAULT_ARBITER",
    "DEFAULT_RANKING",
    "TOLERANCE",
    "Budget",
    "Decision",
    "make_plan",
    "plan_of",
    "search",
    "smallest",
]
