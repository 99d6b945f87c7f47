"""Checks that a plan fits the form of a structure and its units of attention."""

from __future__ import annotations

from disparse_structured.decision.plan import Plan
from disparse_structured.errors import PlanError
from disparse_structured.structure import Attention, Form, Structure
from disparse_structured.structure.structure import attention_of, form_of


def check_form(plan: Plan, structure: Structure) -> None:
    """Raise :class:`PlanError` for a plan of another form of a structure, or other units of attention."""
    made = form_of(plan.fingerprint)
    if made != structure.form:
        raise PlanError(
            f"the plan was made for the {_FORMS[made]}, but the structure is that of the "
            f"{_FORMS[structure.form]}: their units may differ. Analyze the model with form={made!r}, or "
            "make a new plan from this structure."
        )
    units = attention_of(plan.fingerprint)
    if units != structure.attention:
        raise PlanError(
            f"the plan was made for {_UNITS[units]} as the units of attention, but those of the structure "
            f"are {_UNITS[structure.attention]}. Analyze the model with attention={units!r}, or make a new "
            "plan from this structure."
        )


_FORMS: dict[Form, str] = {"module": "module itself", "graph": "exported graph"}
_UNITS: dict[Attention, str] = {"heads": "whole heads", "head_dim": "indices of the head dimension"}
