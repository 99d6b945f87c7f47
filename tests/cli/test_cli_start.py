"""What the command answers without importing torch, and what it does when it is interrupted meanwhile."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest

from disparse_structured import Budget
from disparse_structured.cli import options, parsers, prune_parser, train_parser
from disparse_structured.pipeline import SAMPLES
from disparse_structured.pipeline.examples import NUMBER
from disparse_structured.relatedness import RATIO, UNIT_RATIO
from disparse_structured.relatedness.result import Level
from disparse_structured.structure import Attention, Form
from disparse_structured.training.config import Precision

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch numpy scipy safetensors timm torchvision torch_pruning rich matplotlib PIL lightning_fabric "
    "onnx onnxruntime onnxscript"
)

ANSWERED = {
    "--version": "disparse ",
    "--help": "prune",
    "prune --help": "--tolerance",
    "train --help": "--regime",
    "inspect --help": "--budget-steps",
    "relate --help": "--seeds",
    "finetune --help": "--patience",
    "export --help": "--opset",
    "verify --help": "The exit status is 1 if a check fails.",
    "bench --help": "--save",
    "show --help": "`disparse train`",
    "demo --help": "--quick",
}

CUT = "prune --model net.py:build --data x.npy --macs 0.5 --out out"
TRAIN = "train --model net.py:build --data net.py:x --tasks a --regime static --epochs 1 --macs 1e6 --out out"
INSPECT = "inspect --model net.py:build --example 1x3"
RELATE = "relate --model net.py:build --data x.npy --tasks a,b --out out"

REFUSED = {
    "": "the following arguments are required: COMMAND. `disparse --help` lists the options.",
    "prnue": "invalid choice: 'prnue'",
    f"{CUT} --inputs x.npy": "unrecognized arguments: --inputs x.npy",
    "prune --model net.py:build --data x.npy --macs 0.5": "the following arguments are required: --out",
    "prune --model net.py:build --data x.npy --out out": "arguments --macs --parameters is required",
    f"{CUT} --parameters 0.5": "not allowed with argument --macs",
    "prune --model net.py:build --macs 0.5 --out out": "--images, a folder of pictures, or --data",
    f"{CUT} --example 1x3": "Noise is not data",
    f"{CUT} --macs 200%": "argument --macs: 200% is neither a fraction between 0 and 1 nor a whole number",
    f"{CUT} --macs 0": "argument --macs: 0 is neither a fraction between 0 and 1 nor a whole number above 1",
    f"{CUT} --macs 1": "1 is neither",
    f"{CUT} --macs 1.5": "1.5 is neither",
    f"{CUT} --macs nan": "nan is neither",
    f"{CUT} --macs inf": "inf is neither",
    f"{CUT} --macs half": "half is neither",
    f"{CUT} --floor 2": "argument --floor: 2 is not a number from 0 to 1",
    f"{CUT} --min-width 0": "argument --min-width: 0 is not a whole number of at least 1",
    f"{CUT} --round-to 1.5": "argument --round-to: 1.5 is not 'auto' or a whole number of at least 1",
    f"{CUT} --samples 1": "argument --samples: 1 is not a whole number of at least 2",
    f"{CUT} --threads 0": "argument --threads: 0 is not a whole number of at least 1",
    f"{CUT} --seed -1": "argument --seed: -1 is not a whole number from 0 to 4294967295",
    f"{CUT} --seed 99999999999999999999999": "is not a whole number from 0 to 4294967295",
    f"{CUT} --entry-points 2x3=": "argument --entry-points: '2x3=' does not name an entry point. Write fuse",
    f"{CUT} --entry-points decode=two": "argument --entry-points: expected sizes joined by x, such as",
    f"{CUT} --entry-points fuse fuse": "--entry-points names 'fuse' twice. Name it once.",
    f"{CUT} --entry-points fuse --form graph": "--entry-points names methods of the module, which its",
    f"{CUT} --entry-points gone.py:entries": "--entry-points 'gone.py:entries': 'gone.py' does not exist",
    f"{CUT} --form onnx": "argument --form: invalid choice: 'onnx'",
    f"{CUT} --method compensate": "--method 'compensate' is unknown. Did you mean 'compensated'?",
    f"{CUT} --criterion fihser": "--criterion 'fihser' is unknown. Did you mean 'fisher'?",
    f"{CUT} --criterion own:Rule": "--criterion 'own:Rule': module 'own' is neither in ",
    f"{CUT} --arbiter unanimity": "Did you mean 'unanimous'?",
    f"{CUT} --arbiter qourum": "Did you mean 'quorum:K'?",
    f"{CUT} --arbiter quorum": "--arbiter 'quorum' does not say how many votes. Write quorum:2",
    f"{CUT} --arbiter quorum:0": "--arbiter 'quorum:0' does not say how many votes.",
    f"{CUT} --ranking zzz": "Known names: 'global', 'isomorphic', 'layer', 'per-cost'.",
    f"{CUT} --refit leats-squares": "--refit 'leats-squares' is unknown. Did you mean 'least-squares'?",
    f"{CUT} --tasks near,,far": "argument --tasks: '' in 'near,,far' does not name a task",
    f"{CUT} --tasks near=": "'near=' in 'near=' does not name a task",
    f"{CUT} --tasks near,near": "the task name 'near' is used twice in 'near,near'",
    f"{CUT} --tasks gone:tasks": "--tasks 'gone:tasks': module 'gone' is neither in ",
    f"{CUT} --priority depth": "argument --priority: expected TASK=NUMBER such as depth=0.5, got 'depth'",
    f"{CUT} --priority =1": "expected TASK=NUMBER such as depth=0.5, got '=1'",
    f"{CUT} --priority depth=-1": "argument --priority: -1 is not a number of at least 0",
    f"{CUT} --priority depth=1 --arbiter minimax": "implies --arbiter priority, not --arbiter minimax",
    f"{CUT} --priority depth=1 --priority depth=2": "--priority names 'depth' twice",
    f"{CUT} --tolerance depth=much": "argument --tolerance: much is not a number above 0",
    f"{CUT} --tolerance depth=0": "argument --tolerance: 0 is not a number above 0",
    f"{CUT} --tolerance depth=1 --priority depth=1": "Leave one of them out.",
    f"{CUT} --tolerance depth=1 --arbiter minimax": "--tolerance takes the place of --arbiter",
    f"{CUT} --latency 0.5": "argument --latency: 0.5 is not allowed with argument --macs.",
    f"{CUT} --latency 12": "12 is neither a share of the dense latency between 0 and 1 nor milliseconds.",
    f"{CUT} --latency soon": "soon is neither",
    f"{CUT} --latency 0ms": "0ms is neither",
    "prune --model net.py:build --data x.npy --out out --latency": "required, or --latency with a time.",
    "latency --model net.py:build": "give --model and either --example or --data, to measure a model",
    f"{CUT} --latency --no-onnx": "--latency measures ONNX files. Leave out --no-onnx.",
    f"{CUT} --out net.py": "argument --out: ",
    f"{CUT} --out net.py/below": "is a file. Name a folder.",
    f"{CUT} --weights absent.pt": "argument --weights: there is no file 'absent.pt'",
    f"{CUT} --model net": "--model 'net' does not name an object. Write package.module:name",
    f"{CUT} --model tne:build": "--model 'tne:build': module 'tne' is neither in ",
    f"{CUT} --model tne:build ": "Did you mean 'net'?",
    f"{CUT} --model tne.py:build": "'tne.py' does not exist in ",
    f"{CUT} --model tne.py:build ": "Did you mean 'net.py'?",
    f"{CUT} --model absent/a.py:build": "No Python file in 'absent' was found.",
    f"{CUT} --data absent.npy": "--data 'absent.npy': there is no such file in ",
    f"{CUT} --data pictures": "--data 'pictures' is a folder. Give a file with a tensor",
    f"{CUT} --data pictures/1.png": "--data 'pictures/1.png' is a file that is not one of .npy, .npz, .pt",
    f"{CUT} --data pictures/*.png": "is neither a file nor package.module:name. Give a file with a tensor",
    f"{CUT} --data tne:images": "--data 'tne:images': module 'tne' is neither in ",
    f"{TRAIN} --data x.npy": "--data 'x.npy': training needs batches.",
    f"{TRAIN} --regime sometimes": "invalid choice: 'sometimes'",
    f"{TRAIN} --stages 2": "--stages belongs to --regime pretrained, not to static",
    f"{TRAIN} --refit affine": "--refit belongs to --regime pretrained",
    f"{TRAIN} --every 3": "--every belongs to --regime early, dynamic, not to static",
    f"{TRAIN} --start 0.5": "--start belongs to --regime pretrained, not to static",
    f"{TRAIN} --until 0.5": "--until belongs to --regime pretrained, early, dynamic, not to static",
    f"{TRAIN} --agreement 0.5": "--agreement belongs to --regime early, not to static",
    f"{TRAIN} --regime pretrained --until 0.5": "--until says when the last of --stages runs",
    f"{TRAIN} --stages 0": "argument --stages: 0 is not a whole number of at least 1",
    f"{TRAIN} --every 0": "argument --every: 0 is not a whole number of at least 1",
    f"{TRAIN} --scoring-batches -1": "argument --scoring-batches: -1 is not a whole number of at least 1",
    f"{TRAIN} --checkpoint-every 0": "argument --checkpoint-every: 0 is not a whole number of at least 1",
    f"{TRAIN} --teacher-weight -1": "argument --teacher-weight: -1 is not a number above 0",
    f"{TRAIN} --epochs 0": "argument --epochs: 0 is not a whole number of at least 1",
    f"{TRAIN} --lr -1": "argument --lr: -1 is not a number above 0",
    f"{TRAIN} --fraction 1": "argument --fraction: 1 is not a number above 0 and below 1",
    f"{TRAIN} --until 0": "argument --until: 0 is not a number above 0 and at most 1",
    f"{TRAIN} --teacher-weight 1": "--teacher-weight needs a trained network, and --regime static starts",
    f"{TRAIN} --teacher x.npy": "Give --teacher-weight W too.",
    f"{TRAIN} --patience 2": "--patience needs data to evaluate on. Give --validation.",
    f"{TRAIN} --regime early --patience 2 --validation net:x": "the pruning of --regime early",
    f"{TRAIN} --agreement 0": "argument --agreement: 0 is not a number above 0 and at most 1",
    f"{TRAIN} --regime pretrained --stages 2 --patience 2 --validation net:x": "the last of --stages",
    f"{TRAIN} --validation tne:x": "--validation 'tne:x': module 'tne' is neither in ",
    "inspect --model net.py:build": "one of the arguments --data --example is required",
    f"{INSPECT} --data x.npy": "argument --data: not allowed with argument --example",
    f"{INSPECT} --example 3x": "expected sizes joined by x, such as 2x3x224x224, got '3x'",
    f"{INSPECT} --example 0x3x8x8": "got '0x3x8x8'",
    f"{RELATE} --level layer": "argument --level: invalid choice: 'layer'",
    f"{RELATE} --seeds 0": "argument --seeds: 0 is not a whole number of at least 1",
    f"{RELATE} --ratio 1.5": "argument --ratio: 1.5 is not a number above 0 and below 1",
    f"{RELATE} --batches 0": "argument --batches: 0 is not a whole number of at least 1",
    f"{RELATE} --criterion fish": "--criterion 'fish' is unknown.",
    f"{RELATE} --weights nowhere.safetensors": "there is no file 'nowhere.safetensors'",
    "finetune absent --model net.py:build --data net.py:x --tasks a --epochs 1": "the folder 'absent'",
    "export pictures": "the following arguments are required: --model",
    "export absent --model net.py:build": "the folder 'absent' does not exist in ",
    "verify absent": "the folder 'absent' does not exist in ",
    "verify pictures --data x.npy": "--data is for comparing the ONNX file with the model. Give --model too.",
    "bench pictures --save": "--save writes the times of the dense model too. Give --model.",
    "show absent": "the folder 'absent' does not exist in ",
    "show pictures": "'pictures' holds no plan.json. Give a folder that `disparse prune` or `disparse train`",
    "report": "the following arguments are required: DIR",
    "report absent": "the folder 'absent' does not exist in ",
    "report pictures": "'pictures' holds no report.json. Give a folder that `disparse prune`, ",
    "report one two": "a page covers one folder, found 2. To compare two, run: disparse report diff A B.",
    "report diff pictures absent": "'pictures' holds no report.json",
    "report pictures --out absent/page.html": "holds no report.json",
}

PROGRAM = """
import contextlib, io, json, sys

HEAVY = set(sys.argv[1].split())

answers = {}
for line in json.loads(sys.stdin.read()):
    before = set(sys.modules)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            from disparse_structured.cli import main
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
    answers[line] = [code, out.getvalue(), err.getvalue(), sorted(HEAVY & (set(sys.modules) - before))]
print(json.dumps(answers))
"""


def answers_of(lines: Iterable[str], heavy: str, folder: Path) -> dict[str, list[Any]]:
    """What one fresh interpreter answers to each line: exit code, both outputs, heavy imports."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, heavy],
        input=json.dumps(list(lines)),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text("import torch\n")
    (folder / "x.npy").write_bytes(b"")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "1.png").write_bytes(b"")
    return answers_of([*ANSWERED, *REFUSED], HEAVY, folder)


@pytest.mark.parametrize(("line", "says"), ANSWERED.items())
def test_help_and_version_import_nothing_heavy(answers: dict[str, list[Any]], line: str, says: str) -> None:
    code, out, err, imported = answers[line]
    assert (code, err, imported) == (0, "", [])
    assert says in out


@pytest.mark.parametrize(("line", "says"), REFUSED.items())
def test_refusals_import_nothing_heavy(answers: dict[str, list[Any]], line: str, says: str) -> None:
    code, out, err, imported = answers[line]
    assert (code, out, imported) == (2, "", [])
    assert err.startswith("disparse: error: ")
    assert says in err
    assert err.count("\n") == 1


def test_an_import_would_be_seen(tmp_path: Path) -> None:
    assert answers_of(["--version"], "argparse", tmp_path)["--version"][3] == ["argparse"]


def test_ctrl_c_while_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", "disparse_structured", *INSPECT.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert (done.returncode, done.stderr) == (130, "disparse: interrupted\n")


def test_what_the_parser_states_is_what_the_library_has() -> None:
    budget = inspect.signature(Budget).parameters
    stated = {"floor": options.FLOOR, "min_width": options.MIN_WIDTH, "round_to": options.ROUND_TO}
    assert stated == {name: budget[name].default for name in stated}
    assert get_args(Form) == options.FORMS
    assert get_args(Attention) == options.ATTENTION
    assert get_args(Precision) == train_parser.PRECISIONS
    assert sorted(parsers.LEVELS) == sorted(get_args(Level))
    assert parsers.RATIOS == {"weight": RATIO, "unit": UNIT_RATIO}
    assert prune_parser.SAMPLES == SAMPLES
    assert parsers.SHOWN == NUMBER
