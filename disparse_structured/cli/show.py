"""``disparse show``: the plan and the report of a saved folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from disparse_structured.cli import views
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import LoadError
from disparse_structured.report.schemas import read_document
from disparse_structured.surgery.saved import PLAN, REPORT


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Reads the two JSON files; no model is built."""
    folder = Path(arguments.folder)
    plan = Plan.load(folder / PLAN)
    path = folder / REPORT
    document = read_document(path, "report")
    report = views.pruning_report(document, str(path))
    if report.plan != plan.hash:
        raise LoadError(f"{PLAN} and {REPORT} in {str(folder)!r} come from different runs. Prune again.")
    found = {"folder": str(folder), "plan": json.loads(plan.to_json()), "report": document}
    return Outcome(found, [plan, report, *views.attachments(document)])
