"""What is refused before anything heavy is imported: contradicting options, missing files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from disparse_structured.cli import names
from disparse_structured.cli.lookup import check_spec
from disparse_structured.cli.options import PICTURES, TENSOR_FILES
from disparse_structured.cli.usage import UsageError
from disparse_structured.errors import LoadError, MissingExtraError, require


def check(arguments: argparse.Namespace) -> None:
    """Checks what the parser cannot see in one option alone.

    Raises:
        UsageError: options contradict each other; a name, file or module does not exist.
        MissingExtraError: a package is not installed.
        LoadError: the folder to show is not a saved one.
    """
    names.check(arguments)
    if arguments.command in _COMMANDS:
        _COMMANDS[arguments.command](arguments)
    _check_entry_points(arguments)
    for option in ("model", "tasks"):
        spec = getattr(arguments, option, None)
        if spec is not None and (option == "model" or ":" in spec):
            check_spec(spec, f"--{option}")
    if getattr(arguments, "data", None) is not None:
        check_data(arguments.data)
    if hasattr(arguments, "images"):
        check_images(arguments)
    if getattr(arguments, "validation", None) is not None:
        check_spec(arguments.validation, "--validation")


def check_data(spec: str, option: str = "--data") -> None:
    """Raises :class:`UsageError` unless ``spec`` is an existing file of tensors, or may name an object."""
    path = Path(spec)
    if path.suffix in TENSOR_FILES:
        if not path.is_file():
            raise UsageError(f"{option} {spec!r}: there is no such file in {str(Path.cwd())!r}.")
        return
    if ":" in spec:
        check_spec(spec, option)
        return
    if path.is_dir():
        found = "is a folder"
    elif path.is_file():
        found = f"is a file that is not one of {', '.join(TENSOR_FILES)}"
    else:
        found = "is neither a file nor package.module:name"
    raise UsageError(
        f"{option} {spec!r} {found}. Give a file with a tensor [N, ...] ({', '.join(TENSOR_FILES)}), or a "
        "function that returns batches (package.module:name or path/to/file.py:name). `disparse prune` takes "
        "folders of pictures as --images and --distill."
    )


def check_images(arguments: argparse.Namespace) -> None:
    """Refuses a folder of pictures that does not exist, and their options without it.

    Raises:
        UsageError: it says what to give.
        MissingExtraError: Pillow is not installed.
    """
    if arguments.images is None:
        given = [name for name in PICTURES if getattr(arguments, name) is not None]
        distilled = getattr(arguments, "distill", None) is not None and Path(arguments.distill).is_dir()
        if given and not distilled:
            raise UsageError(f"--{given[0]} belongs to --images. Give both, or leave it out.")
        return
    require("images", "PIL")
    folder = Path(arguments.images)
    if folder.is_dir():
        return
    if folder.is_file():
        tensors = folder.suffix in TENSOR_FILES
        hint = "Give it as --data." if tensors else f"Name the folder that holds it: {str(folder.parent)!r}."
        raise UsageError(f"--images {arguments.images!r} is a file. {hint}")
    if any(sign in arguments.images for sign in "*?["):
        raise UsageError(
            f"--images {arguments.images!r} is a pattern. Name the folder alone; all pictures in it are used."
        )
    raise UsageError(f"--images {arguments.images!r}: there is no such folder in {str(Path.cwd())!r}.")


def _check_distillation(arguments: argparse.Namespace) -> None:
    for name in ("distill_minutes", "distill_steps"):
        if arguments.distill is None and getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to --distill. Give both, or leave it out.")
    if arguments.distill_minutes is not None and arguments.distill_steps is not None:
        raise UsageError(
            "--distill-minutes and --distill-steps both say how long to distill. Leave one of them out."
        )
    if arguments.distill is None:
        return
    if Path(arguments.distill).is_dir():
        require("images", "PIL")
    else:
        check_data(arguments.distill, "--distill")


def _check_prune(arguments: argparse.Namespace) -> None:
    if arguments.example is not None:
        raise UsageError(
            "--example draws random inputs. Noise is not data: what matters to real inputs would be removed. "
            "Give --data instead; --example belongs to `disparse inspect`."
        )
    if (arguments.data is None) == (arguments.images is None):
        if arguments.data is not None:
            raise UsageError("--data and --images both give inputs. Leave one of them out.")
        raise UsageError(
            "the following arguments are required: --images, a folder of pictures, or --data, a file with a "
            "tensor [N, ...] or package.module:name. A few dozen inputs are enough, without labels."
        )
    timed = arguments.latency is not None and arguments.latency is not True
    limits = [name for name in ("macs", "parameters") if getattr(arguments, name) is not None]
    if timed and limits:
        raise UsageError(
            f"argument --latency: {arguments.latency} is not allowed with argument --{limits[0]}. Leave one "
            "of them out, or give --latency without a time to measure only."
        )
    if not timed and not limits:
        raise UsageError("one of the arguments --macs --parameters is required, or --latency with a time.")
    if arguments.runtime is not None and not timed:
        raise UsageError("--runtime belongs to --latency TIME. Give both, or leave it out.")
    _check_runtime(arguments)
    for option in ("priority", "tolerance"):
        _check_once(option, [task for task, _ in getattr(arguments, option)])
    if arguments.tolerance and arguments.priority:
        raise UsageError("--tolerance and --priority both decide between tasks. Leave one of them out.")
    if arguments.tolerance and arguments.arbiter:
        raise UsageError("--tolerance takes the place of --arbiter. Leave one of them out.")
    if arguments.priority and arguments.arbiter not in (None, "priority"):
        raise UsageError(
            f"--priority implies --arbiter priority, not --arbiter {arguments.arbiter}. "
            "Leave one of them out."
        )
    _check_distillation(arguments)
    _check_delivery(arguments)
    if arguments.int8_tolerance and not arguments.int8:
        raise UsageError("--int8-tolerance belongs to --int8. Give both, or leave it out.")
    if arguments.int8 and not arguments.onnx:
        raise UsageError("--int8 quantizes the ONNX file. Leave out --no-onnx.")
    _check_once("int8-tolerance", [task or "all tasks" for task, _ in arguments.int8_tolerance])


def _check_entry_points(arguments: argparse.Namespace) -> None:
    given: Sequence[str] = getattr(arguments, "entry_points", [])
    if given and getattr(arguments, "form", "module") == "graph":
        raise UsageError(
            "--entry-points names methods of the module, which its exported graph does not have. Leave it "
            "out, or leave out --form graph."
        )
    names = [text.partition("=")[0] for text in given]
    for number, (name, text) in enumerate(zip(names, given, strict=True)):
        if name in names[:number]:
            raise UsageError(f"--entry-points names {name!r} twice. Name it once.")
        if ":" in text:
            check_spec(text, "--entry-points")


def _check_training(arguments: argparse.Namespace) -> None:
    require("train", "lightning_fabric")
    if Path(arguments.data).suffix in TENSOR_FILES:
        raise UsageError(
            f"--data {arguments.data!r}: training needs batches. Name a loader, a list of batches, or a "
            "function that returns one."
        )
    if arguments.patience is not None and not arguments.validation:
        raise UsageError("--patience needs data to evaluate on. Give --validation.")
    _check_delivery(arguments)


_OF_REGIMES = {
    "stages": ("pretrained",),
    "refit": ("pretrained",),
    "start": ("pretrained",),
    "agreement": ("early",),
    "every": ("early", "dynamic"),
    "fraction": ("dynamic",),
    "until": ("pretrained", "early", "dynamic"),
}
"""Options of ``train`` that only some regimes have, without a default: so it is seen if they are given."""


def _check_train(arguments: argparse.Namespace) -> None:
    for option, regimes in _OF_REGIMES.items():
        if getattr(arguments, option) is not None and arguments.regime not in regimes:
            named = ", ".join(regimes)
            raise UsageError(f"--{option} belongs to --regime {named}, not to {arguments.regime}.")
    in_stages = (arguments.stages or 1) > 1
    if arguments.until is not None and arguments.regime == "pretrained" and not in_stages:
        raise UsageError("--until says when the last of --stages runs. Give --stages above 1 too.")
    if arguments.teacher and not arguments.teacher_weight:
        raise UsageError("--teacher names the weights to learn from. Give --teacher-weight W too.")
    if arguments.teacher_weight and not arguments.teacher and arguments.regime != "pretrained":
        raise UsageError(
            f"--teacher-weight needs a trained network, and --regime {arguments.regime} starts from an "
            "untrained one. Give its weights with --teacher FILE."
        )
    later = in_stages or arguments.start or arguments.regime == "early"
    if arguments.patience is not None and later:
        raise UsageError(
            "--patience restores the best epoch, which may precede the last of --stages, or the pruning of "
            "--regime early. Fine-tune in a separate run."
        )
    _check_training(arguments)


def _check_latency(arguments: argparse.Namespace) -> None:
    require("onnx", "onnx", "onnxscript", "onnxruntime")
    if arguments.clear:
        return
    if arguments.model is None or (arguments.data is None and arguments.example is None):
        raise UsageError(
            "give --model and either --example or --data, to measure a model, or --clear, to forget what was "
            "measured."
        )
    _check_runtime(arguments)


def _check_relate(arguments: argparse.Namespace) -> None:
    require("figures", "matplotlib")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise LoadError(f"the folder {str(folder)!r} does not exist in {str(Path.cwd())!r}.")


def _check_export(arguments: argparse.Namespace) -> None:
    require("onnx", "onnx", "onnxscript", "onnxruntime")
    _check_folder(Path(arguments.folder))


def _check_bench(arguments: argparse.Namespace) -> None:
    _check_export(arguments)
    _check_runtime(arguments)
    if arguments.save and arguments.model is None:
        raise UsageError("--save writes the times of the dense model too. Give --model.")


def _check_verify(arguments: argparse.Namespace) -> None:
    _check_folder(Path(arguments.folder))
    if arguments.data is not None and arguments.model is None:
        raise UsageError("--data is for comparing the ONNX file with the model. Give --model too.")


def _check_finetune(arguments: argparse.Namespace) -> None:
    _check_training(arguments)
    _check_folder(Path(arguments.folder))


def _check_show(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.folder)
    _check_folder(folder)
    missing = [name for name in ("plan.json", "report.json") if not (folder / name).is_file()]
    if missing:
        raise LoadError(
            f"{str(folder)!r} holds no {missing[0]}. Give a folder that `disparse prune` or `disparse train` "
            "wrote."
        )


def _check_report(arguments: argparse.Namespace) -> None:
    folders = arguments.folders
    if len(folders) > 1 and (len(folders) != 3 or folders[0] != "diff"):
        raise UsageError(
            f"a page covers one folder, found {len(folders)}. To compare two, run: disparse report diff A B."
        )
    for folder in map(Path, folders[-2:]):
        _check_folder(folder)
        if not (folder / "report.json").is_file():
            raise LoadError(
                f"{str(folder)!r} holds no report.json. Give a folder that `disparse prune`, "
                "`disparse train` or `disparse demo` wrote."
            )
    given = arguments.images is not None or arguments.data is not None
    if given and arguments.images is not None and arguments.data is not None:
        raise UsageError("--data and --images both give inputs. Leave one of them out.")
    if given != (arguments.model is not None):
        raise UsageError("pictures need the networks and inputs: give --model, and --images or --data.")
    if given and len(folders) > 1:
        raise UsageError("a comparison of two folders shows no inputs. Leave out --model.")
    if given:
        require("images", "PIL")
    if arguments.out is not None and not arguments.out.parent.is_dir():
        raise UsageError(f"argument --out: {str(arguments.out.parent)!r} is not a folder. Make it first.")


def _check_delivery(arguments: argparse.Namespace) -> None:
    if arguments.onnx:
        try:
            require("onnx", "onnx", "onnxscript", "onnxruntime")
        except MissingExtraError as error:
            raise MissingExtraError(f"{error}, or give --no-onnx.") from None
    elif getattr(arguments, "latency", None):
        raise UsageError("--latency measures ONNX files. Leave out --no-onnx.")


def _check_runtime(arguments: argparse.Namespace) -> None:
    if arguments.runtime == "openvino":
        require("openvino", "openvino")


def _check_once(option: str, tasks: Sequence[str]) -> None:
    for number, task in enumerate(tasks):
        if task in tasks[:number]:
            raise UsageError(f"--{option} names {task!r} twice. Give one number per task.")


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "prune": _check_prune,
    "train": _check_train,
    "latency": _check_latency,
    "relate": _check_relate,
    "export": _check_export,
    "verify": _check_verify,
    "bench": _check_bench,
    "finetune": _check_finetune,
    "show": _check_show,
    "report": _check_report,
}
