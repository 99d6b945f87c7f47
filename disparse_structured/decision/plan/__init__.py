"""The immutable answer: :class:`Plan`, its parts, and what it reads of a structure."""

from disparse_structured.decision.plan.contracts import CostKind, CostModel, PrunableStructure
from disparse_structured.decision.plan.parts import SCHEMA, Change, GroupPlan, Plain, Provenance
from disparse_structured.decision.plan.plan import Plan, package_versions

__all__ = [
    "SCHEMA",
    "Change",
    "CostKind",
    "CostModel",
    "GroupPlan",
    "Plain",
    "Plan",
    "Provenance",
    "PrunableStructure",
    "package_versions",
]
