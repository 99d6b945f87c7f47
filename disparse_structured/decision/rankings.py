"""Rankings: how layers compete within one task's vote."""

from disparse_structured.decision.votes import (
    GlobalRanking,
    IsomorphicRanking,
    LayerRanking,
    PerCostRanking,
    Ranking,
)

__all__ = ["GlobalRanking", "IsomorphicRanking", "LayerRanking", "PerCostRanking", "Ranking"]
