"""The parsers of the commands that work on a saved folder; importing this module imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from disparse_structured.cli import options, values
from disparse_structured.cli.train_parser import add_training
from disparse_structured.cli.usage import Parser

DYNAMIC = ("batch+size", "batch", "size", "static")
"""Which dimensions of an ONNX file are free, as in its facts."""


def add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds ``disparse export`` to ``commands``."""
    parser = options.add_command(
        commands,
        "export",
        usage="DIR --model FACTORY [options]",
        help="write the ONNX file of a saved folder again, also for other shapes",
        description="Write the ONNX file of a folder that `disparse prune` or `disparse train` wrote,\n"
        "and check it against PyTorch.",
        epilog="example:\n  disparse export small --model net.py:build --dynamic static --batch 1 "
        "--size 192x640 \\\n      --out small-192x640.onnx",
    )
    _add_subject(parser, model=True)
    shape = parser.add_argument_group("shape")
    shape.add_argument(
        "--dynamic",
        choices=DYNAMIC,
        help="which dimensions of the inputs must be free (default: as many as possible)",
    )
    shape.add_argument("--batch", type=values.count(), metavar="N", help="examples in a fixed batch")
    shape.add_argument(
        "--size",
        type=values.image_size,
        metavar="SIZE",
        help="height and width of the inputs, such as 224 or 192x640 (default: as pruned)",
    )
    shape.add_argument(
        "--opset", type=values.count(), metavar="N", help="ONNX opset (default: the exporter's)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write (default: model.onnx in the folder, whose report then describes it)",
    )
    options.add_json(output)


def add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds ``disparse verify`` to ``commands``."""
    parser = options.add_command(
        commands,
        "verify",
        usage="DIR [--model FACTORY] [options]",
        help="check a saved folder: checksums, outputs, the ONNX file",
        description="Check that the plan, the weights and the ONNX files of a folder are those that were\n"
        "saved. With --model, also check that the model computes what was stored, and that\n"
        "model.onnx agrees with it. The exit status is 1 if a check fails.",
    )
    _add_subject(parser, model=False)
    options.add_json(parser.add_argument_group("output"))


def add_bench(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds ``disparse bench`` to ``commands``."""
    parser = options.add_command(
        commands,
        "bench",
        usage="DIR [--model FACTORY] [options]",
        help="measure the latency of a saved folder's ONNX files",
        description="Time the ONNX files of a folder in turn. With --model, the dense model is exported\n"
        "and timed too. Files whose quartiles overlap are not called faster or slower.",
    )
    _add_subject(parser, model=False, data=False)
    runtime = parser.add_argument_group("runtime")
    options.add_runtime(runtime, "the command")
    options.add_threads(runtime, "the runtime")
    runtime.add_argument(
        "--batch",
        type=values.count(),
        metavar="N",
        help="examples in a batch (default: 1, or the fixed batch of a file)",
    )
    runtime.add_argument(
        "--size", type=values.shape, metavar="SIZE", help="size of the inputs (default: as stored)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save", action="store_true", help="write the times into the folder's report, for its page"
    )
    options.add_json(output)


def add_finetune(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds ``disparse finetune`` to ``commands``."""
    parser = options.add_command(
        commands,
        "finetune",
        usage="DIR --model FACTORY --data LOADER --tasks TASKS --epochs N [options]",
        help="train the model of a saved folder, and save it back",
        description="Train the model of a folder on its tasks' losses, and save it back: weights, report\n"
        "and ONNX file are replaced. If the run is killed, the same command resumes it.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder")
    subject = parser.add_argument_group("model and data")
    options.add_model(subject)
    options.add_loader(subject)
    options.add_tasks(subject, required=True)
    options.add_entry_points(subject)
    training = parser.add_argument_group("training")
    add_training(training)
    options.add_seed(training)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=values.output_folder, metavar="DIR", help="another folder to write instead"
    )
    options.add_onnx(output)
    options.add_html(output)
    options.add_json(output)


def _add_subject(parser: Parser, *, model: bool, data: bool = True) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder")
    subject = parser.add_argument_group("model and data")
    options.add_model(subject, required=model)
    if data:
        options.add_data(subject, required=False)
    options.add_tasks(subject, required=False)
    options.add_entry_points(subject)
