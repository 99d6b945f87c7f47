"""The immutable answer: :class:`Plan` and its parts."""

from disparse_structured.decision.plan.parts import Change, GroupPlan, Plain, Provenance
from disparse_structured.decision.plan.plan import Plan, package_versions

__all__ = [
    "Change",
    "GroupPlan",
    "Plain",
    "Plan",
    "Provenance",
    "package_versions",
]
