"""What the result may cost, and which widths it may have."""

from disparse_structured.decision.budget.limits import Budget, named

__all__ = ["Budget", "named"]
