"""The ``disparse`` command: its options, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import get_args

from disparse_structured import __version__
from disparse_structured.cli import demo, inspect, names, prune, relate, show, shrink, train
from disparse_structured.cli.console import Screen
from disparse_structured.cli.inputs import SUFFIXES
from disparse_structured.cli.usage import Parser
from disparse_structured.decision.budget import Budget
from disparse_structured.errors import DisparseError
from disparse_structured.pipeline import SAMPLES
from disparse_structured.relatedness import RATIO, UNIT_RATIO
from disparse_structured.structure import Attention, Form

FAILED, INTERRUPTED, UNREAD = 2, 130, 1

_DEFAULTS = Budget(macs=0.5)
_PLACES = "package.module:name or path/to/file.py:name"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for an explained error, 130 for Ctrl-C.

    An unexpected exception is a fault of this package and passes through.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Known before parsing, because a parsing error is to be a document too.
    screen = Screen(as_json="--json" in argv)
    try:
        arguments = _parser().parse_args(argv)
        with screen.reserved():
            outcome = arguments.run(arguments, screen)
        if outcome is not None:
            screen.show(outcome)
    except DisparseError as error:
        screen.fail(error)
        return FAILED
    except KeyboardInterrupt:
        screen.interrupted()
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read standard output has seen enough; the interpreter must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    return 0


def _parser() -> Parser:
    parser = Parser(prog="disparse", description="Structured pruning of multi-task networks.")
    parser.add_argument("--version", action="version", version=f"disparse {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_prune(commands)
    _add_shrink(commands)
    _add_train(commands)
    _add_inspect(commands)
    _add_relate(commands)
    _add_show(commands)
    _add_demo(commands)
    return parser


def _add_prune(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "prune",
        help="make a model smaller: every task votes, the arbiter decides",
        description="Writes plan.json, weights.safetensors, report.json and model.onnx into a folder.",
    )
    _add_model(parser, tasks_required=True)
    _add_weights(parser)
    _add_budget(parser)
    _add_rules(parser, "fisher")
    _add_widths(parser)
    _add_attention(parser)
    parser.add_argument("--batches", type=int, metavar="N", help="score on the first N batches only")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    _add_form(parser)
    _add_verify(parser)
    _add_delivery(parser)
    _finish(parser, prune.run)


def _add_shrink(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "shrink",
        help="make a model smaller from a few dozen unlabelled inputs: no labels, no training",
        description="Every output votes, what stays is refit to the dense model's outputs. Writes plan.json, "
        "weights.safetensors, report.json and model.onnx into a folder.",
    )
    _add_factory(parser)
    parser.add_argument(
        "--inputs",
        required=True,
        metavar="FILE",
        help=f"what forward takes: {', '.join(SUFFIXES)} with a tensor [N, ...]; or {_PLACES}: batches, or a "
        "function that returns them",
    )
    parser.add_argument(
        "--tasks",
        metavar="TASKS",
        help="as of `prune`, losses are not used; by default every entry of the model's output is a task",
    )
    _add_weights(parser)
    _add_budget(parser)
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help=f"read N inputs (default: {SAMPLES})"
    )
    parser.add_argument(
        "--refit",
        default="least-squares",
        metavar="NAME",
        help=f"of the weights that stay: {', '.join(names.REFITS)} (default: least-squares)",
    )
    _add_rules(parser, "foresight", names.SCORINGS, arbiter="weighted-mean")
    parser.add_argument(
        "--priority",
        action="append",
        default=[],
        metavar="TASK=W",
        help="what damage to a task weighs, others 1; several times for several tasks",
    )
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="TASK=X",
        help="the relative deviation that the task's output may have; several times for several tasks. The "
        "budget is met within that, or the command says what is in the way",
    )
    _add_widths(parser)
    _add_attention(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    _add_form(parser)
    _add_verify(parser)
    _add_delivery(parser)
    _finish(parser, shrink.run)


def _add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "train",
        help="prune before, at the start of, or during training, and train",
        description="Trains under a pruning regime and writes what `disparse prune` writes. The folder's "
        "checkpoint.pt lets the same command go on after an interruption, to the same result. torchrun "
        "spreads the training over processes.",
    )
    _add_model(parser, tasks_required=True)
    _add_weights(parser)
    parser.add_argument(
        "--regime",
        required=True,
        choices=train.REGIMES,
        help="pretrained: a trained model, then fine-tuning; static: at initialisation; dynamic: units go "
        "and come back while training",
    )
    _add_budget(parser)
    parser.add_argument("--epochs", type=int, required=True, metavar="N", help="passes over --data")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="peak rate (default: 0.001)")
    parser.add_argument("--weight-decay", type=float, default=0.01, metavar="X", help="(default: 0.01)")
    parser.add_argument("--validation", metavar="LOADER", help="as --data: judged after each epoch")
    parser.add_argument("--patience", type=int, metavar="N", help="stop N epochs after the best --validation")
    parser.add_argument("--distill", type=float, metavar="W", help="learn from the dense model, by weight W")
    parser.add_argument("--teacher", metavar="FILE", help="weights of the model to distil from")
    parser.add_argument(
        "--precision",
        default="32-true",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        help="of training (default: 32-true)",
    )
    parser.add_argument("--stages", type=int, default=1, metavar="N", help="pretrained: prune in N stages")
    parser.add_argument("--every", type=int, metavar="N", help="steps between two stages or exchanges")
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.3,
        metavar="F",
        help="dynamic: share of the budget that the first exchange moves (default: 0.3)",
    )
    parser.add_argument(
        "--until",
        type=float,
        default=0.75,
        metavar="F",
        help="dynamic: share of all steps after which the mask is fixed (default: 0.75)",
    )
    _add_rules(parser, None)
    _add_widths(parser)
    parser.add_argument(
        "--scoring-batches",
        type=int,
        default=8,
        metavar="N",
        help="batches of --data that one scoring reads (default: 8)",
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="N", help="steps between two (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    _add_delivery(parser)
    parser.set_defaults(batches=None)
    _finish(parser, train.run)


def _add_weights(parser: Parser) -> None:
    parser.add_argument(
        "--weights", metavar="FILE", help="safetensors, or a torch file of tensors only; must fit exactly"
    )


def _add_budget(parser: Parser) -> None:
    budget = parser.add_mutually_exclusive_group(required=True)
    limit = "a fraction of dense, such as 0.5, or a count"
    budget.add_argument("--macs", type=float, metavar="N", help=f"the MACs to reach: {limit}")
    budget.add_argument("--parameters", type=float, metavar="N", help=f"the parameters to reach: {limit}")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")


def _add_rules(
    parser: Parser,
    criterion: str | None,
    criteria: Mapping[str, object] = names.CRITERIA,
    arbiter: str = "unanimous",
) -> None:
    """Criterion, arbiter and ranking; None stands for the regime's own criterion."""
    default = "snip at initialisation, else fisher" if criterion is None else criterion
    parser.add_argument(
        "--criterion",
        default=criterion,
        metavar="NAME",
        help=f"{', '.join(criteria)} (default: {default})",
    )
    parser.add_argument(
        "--arbiter",
        default=arbiter,
        metavar="NAME",
        help=f"{', '.join(names.ARBITERS)}, {names.QUORUM} (default: {arbiter})",
    )
    parser.add_argument(
        "--ranking",
        default="per-cost",
        metavar="NAME",
        help=f"how layers compete: {', '.join(names.RANKINGS)} (default: per-cost)",
    )


def _add_form(parser: Parser) -> None:
    parser.add_argument(
        "--form",
        choices=get_args(Form),
        default="module",
        help="what becomes smaller: the module itself, or its exported graph, in which every number that "
        "forward computes with can follow (default: module)",
    )


def _add_attention(parser: Parser) -> None:
    parser.add_argument(
        "--attention",
        choices=get_args(Attention),
        default="heads",
        help="what of attention may go: whole heads, or the same part of every head's dimension "
        "(default: heads)",
    )


def _add_verify(parser: Parser) -> None:
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="skip the proof against the masked twin"
    )


def _add_delivery(parser: Parser) -> None:
    parser.add_argument(
        "--onnx",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write model.onnx (default: yes)",
    )
    parser.add_argument(
        "--latency", action="store_true", help="also time dense against pruned in ONNX Runtime"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of --latency (default: 1)")


def _add_inspect(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what may shrink, what may not and why, and how far a budget could go",
        description="Reads a model's channel groups. Nothing is scored, changed or written.",
    )
    _add_model(parser, tasks_required=False)
    _add_form(parser)
    _add_widths(parser)
    _add_attention(parser)
    parser.add_argument(
        "--budget-steps", action="store_true", help="how far a budget could go, for several floors"
    )
    _finish(parser, inspect.run)


def _add_relate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "relate",
        help="how related the tasks are: what they keep alike, layer by layer",
        description="Writes relatedness.json and figures into a folder; the published values stand beside.",
    )
    _add_model(parser, tasks_required=True)
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="FILE",
        help="trained weights: safetensors, or torch files of tensors only; one run each",
    )
    parser.add_argument("--trained", action="store_true", help="the factory returns a trained model")
    parser.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="the share that every task gives up "
        f"(default: {RATIO:g} of the weights, as published, and {UNIT_RATIO:g} of the units)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="untrained networks to draw (default: 3)"
    )
    parser.add_argument(
        "--level", default="both", metavar="LEVEL", help=f"{', '.join(relate.LEVELS)} or both (default: both)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--criterion", default="fisher", metavar="NAME", help="of units, as of `prune` (default: fisher)"
    )
    parser.add_argument(
        "--ranking", default="layer", metavar="NAME", help="of units, as of `prune` (default: layer)"
    )
    parser.add_argument("--batches", type=int, metavar="N", help="score on the first N batches only")
    _finish(parser, relate.run)


def _add_show(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("show", help="print the plan and the report of a saved folder")
    parser.add_argument("folder", metavar="DIR", help="a folder that `disparse prune` wrote")
    _finish(parser, show.run)


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("demo", help="prune a real multi-task network, end to end, in minutes")
    parser.add_argument("--out", default="demo-out", metavar="DIR", help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--quick", action="store_true", help="less training: a look at the flow")
    _finish(parser, demo.run)


def _add_factory(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="FACTORY",
        help=f"{_PLACES}: a function without arguments that returns the dense model",
    )


def _add_model(parser: Parser, *, tasks_required: bool) -> None:
    _add_factory(parser)
    parser.add_argument(
        "--tasks",
        required=tasks_required,
        metavar="TASKS",
        help=f"{_PLACES}: a sequence of Task, or a function that returns one; "
        "or output names: depth,normals (dict keys), depth=aux.depth (a path), depth=0 (an index)"
        + ("" if tasks_required else "; by default the whole output is one task"),
    )
    parser.add_argument(
        "--data", metavar="LOADER", help=f"{_PLACES}: batches, or a function that returns them"
    )
    parser.add_argument(
        "--example",
        nargs="+",
        metavar="SHAPE",
        help="shapes of random example inputs, such as 2x3x224x224; by default the first samples of the data",
    )


def _add_widths(parser: Parser) -> None:
    parser.add_argument(
        "--floor",
        type=float,
        default=_DEFAULTS.floor,
        metavar="F",
        help=f"share of every group that stays (default: {_DEFAULTS.floor:g})",
    )
    parser.add_argument(
        "--min-width",
        type=int,
        default=_DEFAULTS.min_width,
        metavar="N",
        help="units of every group that stay",
    )
    parser.add_argument(
        "--round-to",
        type=int,
        default=_DEFAULTS.round_to,
        metavar="N",
        help="kept widths are multiples of it",
    )
    parser.add_argument(
        "--protect",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="groups, parameters or modules that keep their width (*, ?, [])",
    )


def _finish(parser: Parser, run: object) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.set_defaults(run=run)
