"""The parser of ``disparse prune``; importing this module imports nothing heavy."""

from __future__ import annotations

import argparse

from disparse_structured.cli import names, options, values
from disparse_structured.cli.usage import Parser

SAMPLES, MOST_SAMPLES = 64, 256
"""How many inputs the default method reads."""


def add_prune(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds the command to ``commands``."""
    parser = options.add_command(
        commands,
        "prune",
        usage="[SETTINGS.toml] --model FACTORY (--data DATA | --images FOLDER)\n"
        "                      (--macs N | --parameters N | --latency TIME) --out DIR [options]",
        help="make a model smaller, without labels",
        description="Prune a model to a budget. A few dozen inputs are enough; the default method needs no\n"
        f"labels. Writes {options.FILES}.",
        epilog="example:\n  disparse prune --model net.py:build --weights dense.safetensors "
        "--images photos \\\n      --macs 0.5 --out small",
    )
    subject = parser.add_argument_group("model and data")
    options.add_model(subject)
    options.add_weights(subject)
    options.add_data(subject, required=False)  # checks.py says what to give
    options.add_images(subject)
    options.add_calls(subject)
    subject.add_argument("--example", nargs="+", help=argparse.SUPPRESS)  # refused with a reason
    options.add_tasks(subject, required=False)
    subject.add_argument(
        "--samples",
        type=values.count(2),
        metavar="N",
        help=f"read N inputs (default: {SAMPLES}, up to {MOST_SAMPLES} for a small model; --method disparse "
        "and iterative score on all)",
    )
    options.add_pictures(parser.add_argument_group("pictures", "How the files of --images become inputs."))
    budget = parser.add_argument_group("budget")
    options.add_limit(budget, required=False)  # checks.py says what to give
    options.add_widths(budget)
    budget.add_argument(
        "--drop-unused",
        action="store_true",
        help="leave out modules that never run, in eval or train mode, and prune what remains",
    )
    _add_method(parser.add_argument_group("method", options.OWN))
    output = parser.add_argument_group("output")
    options.add_out(output)
    output.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="skip the check of the pruned model against the masked dense model",
    )
    options.add_delivery(output, limits=True)
    options.add_int8(output)
    options.add_save_settings(output)
    options.add_json(output)


def _add_method(method: options.Group) -> None:
    method.add_argument(
        "--method",
        default="compensated",
        metavar="NAME",
        help="how to decide what is removed. compensated: by the damage to each task's output that remains "
        "after the other weights have compensated, without labels; disparse: every task votes, by its loss "
        "if it has one; iterative: the votes of disparse in several rounds (default: compensated)",
    )
    options.add_rules(
        method,
        criterion="by elimination for compensated, fisher otherwise",
        arbiter="weighted-mean for compensated, unanimous otherwise",
    )
    method.add_argument(
        "--priority",
        type=values.by_task(values.not_negative),
        action="append",
        default=[],
        metavar="TASK=W",
        help="weight of the damage to a task, 1 for tasks not named; repeat it for further tasks. Implies "
        "--arbiter priority",
    )
    method.add_argument(
        "--tolerance",
        type=values.by_task(values.positive),
        action="append",
        default=[],
        metavar="TASK=X",
        help="largest relative deviation of a task's output from the dense model's, such as depth=0.01; "
        "repeat it for further tasks. If the budget cannot be met within it, the command says why. "
        "Replaces --arbiter",
    )
    method.add_argument(
        "--refit",
        default="least-squares",
        metavar="NAME",
        help=f"how the remaining weights are refit: {', '.join(names.REFITS)} (default: least-squares)",
    )
    options.add_distillation(method)
    options.add_structure(method)
    options.add_seed(method)
