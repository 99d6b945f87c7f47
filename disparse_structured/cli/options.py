"""Options that several commands share, in groups; importing this module imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from disparse_structured.cli import names, values
from disparse_structured.cli.usage import Parser

OWN = "A NAME may also be an object or class of your own, as package.module:name."
AS = "as package.module:name or path/to/file.py:name"
"""How an option names a Python object."""

TENSOR_FILES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
RESIZES = ("shorter", "stretch", "pad")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
"""Those of :class:`~disparse_structured.data.preprocessing.Preprocessing`."""

PICTURES = ("size", "mean", "std", "resize", "crop", "interpolation", "preprocessing", "frames")
"""The options of :func:`add_pictures`."""

FORMS = ("module", "graph")
ATTENTION = ("heads", "head_dim")
OUTPUTS = ("all", "tasks")
FLOOR, MIN_WIDTH, ROUND_TO = 0.1, 1, "auto"
"""The defaults of :class:`~disparse_structured.decision.budget.Budget`."""

INT8_TOLERANCE = 0.05
"""The default of :func:`~disparse_structured.pipeline.quantize`."""

FILES = "plan.json, weights.safetensors, report.json, settings.toml and model.onnx"
"""What pruning commands write."""

Group = argparse._ArgumentGroup
Options = argparse._ActionsContainer


def add_command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    *,
    usage: str,
    help: str,
    description: str,
    epilog: str | None = None,
) -> Parser:
    """A parser for the command ``name``; ``usage`` is what follows the name."""
    return commands.add_parser(
        name,
        usage=f"disparse {name} {usage}",
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model(group: Options, *, required: bool = True) -> None:
    """``--model``."""
    group.add_argument(
        "--model",
        required=required,
        metavar="FACTORY",
        help=f"a function without arguments that returns the dense model, {AS}",
    )


def add_weights(group: Options) -> None:
    """``--weights``."""
    group.add_argument(
        "--weights",
        type=values.weights_file,
        metavar="FILE",
        help="weights of the dense model: a safetensors file, or a torch file that holds tensors only. They "
        "must fit the model exactly",
    )


def add_data(group: Options, *, required: bool) -> None:
    """``--data``."""
    group.add_argument(
        "--data",
        required=required,
        metavar="DATA",
        help=f"inputs of the model: a file ({', '.join(TENSOR_FILES)}) with a tensor [N, ...]; or a loader, "
        f"a list of batches, or a function that returns one, {AS}",
    )


def add_loader(group: Options) -> None:
    """``--data`` of commands that train."""
    group.add_argument(
        "--data",
        required=True,
        metavar="LOADER",
        help=f"training batches: a loader, a list of batches, or a function that returns one, {AS}",
    )


def add_images(group: Options, *, required: bool = False) -> None:
    """``--images``."""
    group.add_argument(
        "--images",
        metavar="FOLDER",
        required=required,
        help="inputs of the model: a folder of pictures (JPEG, PNG, WebP, BMP) or videos, with subfolders. "
        "The options under 'pictures', or the model's own configuration, state how to prepare them",
    )


def add_pictures(group: Options) -> None:
    """How the files of ``--images`` become inputs."""
    group.add_argument(
        "--size", type=values.image_size, metavar="SIZE", help="height and width, such as 224 or 192x640"
    )
    group.add_argument(
        "--mean",
        type=values.channels,
        metavar="R,G,B",
        help="subtracted from each channel, once pixels are scaled to 0 to 1; one value for gray inputs",
    )
    group.add_argument(
        "--std", type=values.channels, metavar="R,G,B", help="what each channel is then divided by"
    )
    group.add_argument(
        "--resize",
        choices=RESIZES,
        help="shorter: keep the aspect ratio and crop the center; stretch: do not keep it; pad: keep it and "
        "fill the rest",
    )
    group.add_argument(
        "--crop",
        type=values.share_above_zero,
        metavar="F",
        help="fraction of the resized picture's side that the crop keeps, such as 0.875",
    )
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help="how pictures are resized")
    group.add_argument(
        "--preprocessing",
        type=Path,
        metavar="FILE",
        help="take what is not given here from a Hugging Face preprocessor_config.json or a timm "
        "config.json (default: from the model, if it or its backbone comes from timm)",
    )
    group.add_argument(
        "--frames", type=values.count(), metavar="N", help="frames to read from each video (default: 8)"
    )


def add_example(group: Options) -> None:
    """``--example``."""
    group.add_argument(
        "--example",
        type=values.shape,
        nargs="+",
        metavar="SHAPE",
        help="shapes of random inputs, such as 2x3x224x224, one for each argument of forward",
    )


def add_tasks(group: Options, *, required: bool) -> None:
    """``--tasks``."""
    group.add_argument(
        "--tasks",
        type=values.tasks,
        required=required,
        metavar="TASKS",
        help="names of outputs: depth,normals (dict keys), depth=aux.depth (a path), depth=0 (an index); or "
        f"a sequence of Task, or a function that returns one, {AS}"
        + ("" if required else " (default: one task for each output of the model)"),
    )


def add_limit(group: Options, *, required: bool = True) -> None:
    """``--macs`` or ``--parameters``."""
    limits = group.add_mutually_exclusive_group(required=required)
    wanted = "of the pruned model: a fraction of the dense model's, such as 0.5 or 50%%, or a count"
    limits.add_argument("--macs", type=values.limit, metavar="N", help=f"MACs {wanted}")
    limits.add_argument("--parameters", type=values.limit, metavar="N", help=f"parameters {wanted}")


def add_widths(group: Options) -> None:
    """What limits how narrow layers become."""
    group.add_argument(
        "--floor",
        type=values.share,
        default=FLOOR,
        metavar="F",
        help=f"keep at least this share of each group's units (default: {FLOOR:g})",
    )
    group.add_argument(
        "--min-width",
        type=values.count(),
        default=MIN_WIDTH,
        metavar="N",
        help=f"keep at least N units in each group (default: {MIN_WIDTH})",
    )
    group.add_argument(
        "--round-to",
        type=values.rounding,
        default=ROUND_TO,
        metavar="N",
        help=f"round kept widths up to a multiple of N; auto: convolutions, for speed (default: {ROUND_TO})",
    )
    group.add_argument(
        "--uniform",
        action="store_true",
        help="give layers of one kind one width: groups whose names differ only in numbers",
    )
    group.add_argument(
        "--protect",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="groups, parameters or modules that keep their width; *, ? and [] match as in a shell",
    )


def add_rules(group: Options, *, criterion: str, arbiter: str) -> None:
    """``--criterion``, ``--arbiter`` and ``--ranking``; the arguments describe the defaults."""
    group.add_argument(
        "--criterion",
        metavar="NAME",
        help=f"how units are scored: {', '.join(names.CRITERIA)} (default: {criterion})",
    )
    group.add_argument(
        "--arbiter",
        metavar="NAME",
        help="how the tasks' scores become one decision: "
        f"{', '.join(names.ARBITERS)}, {names.QUORUM} (default: {arbiter})",
    )
    group.add_argument(
        "--ranking",
        metavar="NAME",
        help=f"how layers compete for units: {', '.join(names.RANKINGS)} (default: per-cost)",
    )


def add_structure(group: Options) -> None:
    """Add ``--form``, ``--attention`` and ``--outputs``."""
    group.add_argument(
        "--form",
        choices=FORMS,
        default="module",
        help="what is pruned: the module itself, or its exported graph, where sizes that forward hard-codes "
        "can shrink as well (default: module)",
    )
    group.add_argument(
        "--attention",
        choices=ATTENTION,
        default="heads",
        help="what is removed from attention: whole heads, or one index of the head dimension in every head "
        "(default: heads)",
    )
    group.add_argument(
        "--outputs",
        choices=OUTPUTS,
        default="all",
        help="which outputs keep their widths: everything that the model returns, or only the tasks' "
        "(default: all)",
    )


def add_calls(group: Options) -> None:
    """``--batched`` and ``--entry-points``: how the model is called."""
    add_batched(group)
    add_entry_points(group)


def add_batched(group: Options) -> None:
    """``--batched``."""
    group.add_argument(
        "--batched",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="arguments of forward whose first dimension is the batch (default: found by running the model "
        "with one more example)",
    )


def add_entry_points(group: Options) -> None:
    """``--entry-points``."""
    group.add_argument(
        "--entry-points",
        type=values.entry_point,
        nargs="+",
        action="extend",
        default=[],
        metavar="ENTRY",
        help="other methods that must work after pruning: fuse, a method without arguments; "
        "backbone.encode=2x3x64x64, one called with random inputs of these shapes (join several with "
        f"commas); or a dict of entry points, or a function that returns one, {AS}",
    )


def add_seed(group: Options) -> None:
    """``--seed``."""
    group.add_argument("--seed", type=values.seed, default=0, metavar="N", help="random seed (default: 0)")


def add_out(group: Options) -> None:
    """``--out``."""
    group.add_argument(
        "--out", type=values.output_folder, required=True, metavar="DIR", help="folder to write"
    )


def add_delivery(group: Options, *, limits: bool = False) -> None:
    """``--onnx``, ``--latency``, which with a number ``limits`` the latency, and ``--threads``."""
    add_onnx(group)
    measure = "also measure the latency of the dense and the pruned model in ONNX Runtime"
    if limits:
        group.add_argument(
            "--latency",
            type=values.latency,
            nargs="?",
            const=True,
            metavar="TIME",
            help=f"{measure}. With a TIME, prune to it instead of --macs or --parameters: 0.5 for half of "
            "the dense model's time, or 12ms",
        )
    else:
        group.add_argument("--latency", action="store_true", help=measure)
    add_threads(group, "--latency")
    if limits:
        add_runtime(group, "--latency TIME")
    add_html(group)


def add_onnx(group: Options) -> None:
    """``--onnx``."""
    group.add_argument(
        "--onnx",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write model.onnx and check it against PyTorch (default: yes)",
    )


def add_html(group: Options) -> None:
    """``--html``."""
    group.add_argument("--html", action="store_true", help="also write report.html, a page about the result")


def add_threads(group: Options, user: str) -> None:
    """``--threads``, which ``user`` uses."""
    group.add_argument(
        "--threads",
        type=values.count(),
        default=1,
        metavar="N",
        help=f"threads used by {user} (default: 1)",
    )


def add_runtime(group: Options, user: str) -> None:
    """``--runtime``, which ``user`` measures in."""
    group.add_argument(
        "--runtime",
        choices=names.RUNTIMES,
        metavar="NAME",
        help=f"the runtime that {user} measures in: {' or '.join(names.RUNTIMES)} "
        f"(default: {next(iter(names.RUNTIMES))})",
    )


def add_int8(group: Options) -> None:
    """``--int8`` and ``--int8-tolerance``."""
    group.add_argument(
        "--int8",
        action="store_true",
        help="also write model.int8.onnx, with as many layers in INT8 as the tasks' outputs allow, and "
        "measure whether it is faster than model.onnx",
    )
    group.add_argument(
        "--int8-tolerance",
        type=values.tolerance,
        action="append",
        default=[],
        metavar="[TASK=]X",
        help="how far INT8 may move a task's output, relative to model.onnx; repeat it for further tasks "
        f"(default: {INT8_TOLERANCE:g})",
    )


def add_distillation(group: Options) -> None:
    """``--distill``, ``--distill-minutes`` and ``--distill-steps``."""
    group.add_argument(
        "--distill",
        metavar="DATA",
        help="inputs on which to train the pruned model to match the dense one, without labels: a folder of "
        "pictures, prepared like those of --images, or anything that --data takes. If the run is killed, the "
        "same command resumes it",
    )
    group.add_argument(
        "--distill-minutes",
        type=values.positive,
        metavar="M",
        help="about how long the distillation may take (default: 600 steps)",
    )
    group.add_argument("--distill-steps", type=values.count(), metavar="N", help="its number of steps")


def add_save_settings(group: Options) -> None:
    """``--save-settings``."""
    group.add_argument(
        "--save-settings",
        type=Path,
        metavar="FILE",
        help="write these options as a settings file, and do nothing else",
    )


def add_json(group: Options) -> None:
    """``--quiet`` and ``--json``."""
    group.add_argument("--quiet", action="store_true", help="show no progress")
    group.add_argument("--json", action="store_true", help="print one JSON document on standard output")
