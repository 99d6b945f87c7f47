"""The parser of the whole command line; importing this module imports nothing heavy."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

from disparse_structured.cli import options, values
from disparse_structured.cli.folder_parsers import add_bench, add_export, add_finetune, add_verify
from disparse_structured.cli.prune_parser import add_prune
from disparse_structured.cli.train_parser import add_train
from disparse_structured.cli.usage import Parser

SHOWN = 3
"""How many inputs a page shows."""

LEVELS = ("unit", "weight")
RATIOS = {"weight": 0.922, "unit": 0.5}


def build_parser() -> Parser:
    """The parser with all commands."""
    parser = Parser(
        prog="disparse",
        description="Structured pruning of multi-task networks.",
        epilog="`disparse COMMAND --help` lists the options of a command.",
    )
    installed = version("disparse-structured")
    parser.add_argument("--version", action="version", version=f"disparse {installed}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_prune(commands)
    add_train(commands)
    add_finetune(commands)
    add_export(commands)
    add_verify(commands)
    add_bench(commands)
    _add_inspect(commands)
    _add_latency(commands)
    _add_images(commands)
    _add_relate(commands)
    _add_show(commands)
    _add_report(commands)
    _add_demo(commands)
    return parser


def _add_inspect(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = options.add_command(
        commands,
        "inspect",
        usage="--model FACTORY (--data DATA | --example SHAPE [SHAPE ...]) [options]",
        help="show what can shrink, what cannot and why, and how far a budget can go",
        description="Show the groups of units that shrink together. Nothing is scored, changed or written.",
    )
    subject = parser.add_argument_group("model and data")
    options.add_model(subject)
    inputs = subject.add_mutually_exclusive_group(required=True)
    options.add_data(inputs, required=False)
    options.add_example(inputs)
    options.add_tasks(subject, required=False)
    options.add_calls(subject)
    options.add_structure(subject)
    budget = parser.add_argument_group("budget")
    options.add_widths(budget)
    budget.add_argument(
        "--budget-steps",
        action="store_true",
        help="show how far a budget can go for several values of --floor",
    )
    options.add_json(parser.add_argument_group("output"))


def _add_latency(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = options.add_command(
        commands,
        "latency",
        usage="(--model FACTORY (--data DATA | --example SHAPE [SHAPE ...]) | --clear) [options]",
        help="measure how long a model's operations take in a runtime at several widths",
        description="Measure a model's operations in a runtime on this machine, and show at which widths\n"
        "they are fast. Times are kept for `disparse prune --latency` and for other models.",
    )
    subject = parser.add_argument_group("model and data")
    options.add_model(subject, required=False)  # checks.py says what to give
    inputs = subject.add_mutually_exclusive_group()
    options.add_data(inputs, required=False)
    options.add_example(inputs)
    options.add_tasks(subject, required=False)
    options.add_calls(subject)
    options.add_structure(subject)
    runtime = parser.add_argument_group("runtime")
    options.add_runtime(runtime, "the command")
    options.add_threads(runtime, "the runtime")
    runtime.add_argument(
        "--batch", type=values.count(), default=1, metavar="N", help="examples in a batch (default: 1)"
    )
    runtime.add_argument(
        "--size",
        type=values.shape,
        metavar="SIZE",
        help="the size of the inputs, such as 224x224 (default: that of the data or example)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the times over the widths into an SVG file"
    )
    output.add_argument("--clear", action="store_true", help="forget what was measured on this machine")
    options.add_json(output)


def _add_images(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = options.add_command(
        commands,
        "images",
        usage="--images FOLDER --sheet FILE [options]",
        help="show a folder of pictures as a network would see them",
        description="Prepare the pictures as `disparse prune` would, and draw them side by side in one\n"
        "file, so that wrong preprocessing is noticed before it matters.",
    )
    subject = parser.add_argument_group("model and data")
    options.add_images(subject, required=True)
    options.add_model(subject, required=False)
    options.add_pictures(parser.add_argument_group("pictures", "How the files of --images become inputs."))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--sheet", type=Path, required=True, metavar="FILE", help="the file to write, such as inputs.png"
    )
    output.add_argument(
        "--number", type=values.count(), default=24, metavar="N", help="inputs to draw (default: 24)"
    )
    options.add_json(output)


def _add_relate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = options.add_command(
        commands,
        "relate",
        usage="--model FACTORY --data DATA --tasks TASKS --out DIR [options]",
        help="measure how related the tasks are, layer by layer",
        description="Measure how much the tasks agree on what to keep in each layer. Writes\n"
        "relatedness.json and figures into a folder; published values are shown for comparison.",
    )
    subject = parser.add_argument_group("model and data")
    options.add_model(subject)
    subject.add_argument(
        "--weights",
        type=values.weights_file,
        nargs="+",
        default=[],
        metavar="FILE",
        help="trained weights, one file for each training run: safetensors, or torch files that hold tensors "
        "only",
    )
    subject.add_argument("--trained", action="store_true", help="the factory returns a trained model")
    options.add_data(subject, required=True)
    options.add_tasks(subject, required=True)
    subject.add_argument(
        "--batches", type=values.count(), metavar="N", help="read the first N batches only (default: all)"
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--level",
        choices=(*LEVELS, "both"),
        default="both",
        help="compare kept units or kept weights (default: both)",
    )
    method.add_argument(
        "--ratio",
        type=values.share_below_one,
        metavar="R",
        help="share that each task removes "
        f"(default: {RATIOS['weight']:g} of the weights, as published, and {RATIOS['unit']:g} of the units)",
    )
    method.add_argument(
        "--seeds", type=values.count(), default=3, metavar="N", help="untrained networks to draw (default: 3)"
    )
    method.add_argument(
        "--criterion",
        default="fisher",
        metavar="NAME",
        help="how units are scored, as in prune (default: fisher)",
    )
    method.add_argument(
        "--ranking",
        default="layer",
        metavar="NAME",
        help="how layers compete for units, as in prune (default: layer)",
    )
    output = parser.add_argument_group("output")
    options.add_out(output)
    options.add_json(output)


def _add_show(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = options.add_command(
        commands,
        "show",
        usage="DIR [options]",
        help="print the plan and the report of a saved folder",
        description="Print the plan and the report of a folder that `disparse prune` or\n"
        "`disparse train` wrote.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder")
    options.add_json(parser)


def _add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = options.add_command(
        commands,
        "report",
        usage="(DIR | diff DIR DIR) [options]",
        help="write a page about a saved folder, or compare two",
        description="Write report.html, one self-contained page, into a folder that `disparse prune`,\n"
        "`disparse train` or `disparse demo` wrote. `disparse report diff A B` compares two\n"
        "folders.",
        epilog="examples:\n  disparse report small\n  disparse report small --images photos --model "
        "net.py:build --weights dense.safetensors\n  disparse report small --markdown >> comment.md\n"
        "  disparse report diff small smaller --out diff.html",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="the folder, or diff and two folders")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page to write (default: report.html in the folder; none for diff)",
    )
    shown = parser.add_argument_group(
        "inputs to show", "A few inputs, and each task's output before and after pruning, as pictures."
    )
    options.add_images(shown)
    options.add_data(shown, required=False)
    shown.add_argument(
        "--number", type=values.count(), metavar="N", help=f"inputs to show (default: {SHOWN})"
    )
    options.add_model(shown, required=False)
    options.add_weights(shown)
    options.add_tasks(shown, required=False)
    options.add_entry_points(shown)
    options.add_pictures(parser.add_argument_group("pictures", "How the files of --images become inputs."))
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--markdown",
        action="store_true",
        help="print a short table in Markdown, for a comment or a job summary; write no page unless --out "
        "names one",
    )
    options.add_json(form)


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = options.add_command(
        commands,
        "demo",
        usage="[options]",
        help="train, prune, fine-tune and export a small multi-task network in minutes",
        description="Train a small multi-task network on rendered scenes, prune, fine-tune and export it.",
    )
    parser.add_argument(
        "--out",
        type=values.output_folder,
        default="demo-out",
        metavar="DIR",
        help="folder to write (default: demo-out)",
    )
    options.add_seed(parser)
    parser.add_argument("--quick", action="store_true", help="train less, to see the steps only")
    options.add_json(parser)
