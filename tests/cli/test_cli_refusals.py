"""Input that only the model's own code, its data or a file's content shows to be wrong."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from disparse_structured.cli import main
from disparse_structured.cli.advice import in_options
from tests.support.command_line import prune_tiny, refusal

INSPECT = ("inspect", "--model", "tiny:build", "--example", "2x3x8x8")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "tiny:buidl", "module 'tiny' has no 'buidl'. Did you mean 'build'?"),
        ("--model", "tiny.net:build", "'tiny' is a module, not a package, so 'tiny.net' does not exist."),
        ("--model", "torch.optmi:SGD", "package 'torch' has no module 'optmi'. Did you mean 'optim'?"),
        ("--model", "tiny:broken", "calling it raised ValueError: no checkpoint here (at "),
        ("--model", "quits.py:build", "calling it raised SystemExit: 7"),
        ("--model", "tiny:unfinished", "returned something of type str. It must return the dense torch.nn"),
        ("--model", "tiny:number", "is of type int. Name a factory"),
        ("--model", "tiny:Branching", "torch.export could not capture Branching"),
        ("--model", "needs_absent:x", "importing 'needs_absent' raised ModuleNotFoundError: No module named"),
        ("--model", "typo.py:x", "raised SyntaxError"),
        ("--data", "tiny:nothing", "yields no batch"),
        ("--data", "tiny:number", "--data 'tiny:number' is of type int, which yields no batches"),
        ("--data", "tiny:failing", "--data: reading a batch raised RuntimeError: the disk is gone (at "),
        ("--data", "tiny:imagse", "Did you mean 'images'?"),
        ("--data", "broken.npy", "--data 'broken.npy' cannot be read"),
        ("--data", "text.pt", "--data 'text.pt' holds a value of type str. Save one tensor [N, ...]"),
        ("--data", "nothing.pt", "--data 'nothing.pt' holds nothing."),
        ("--data", "stored.npy", "images as they are stored. Pass what forward takes"),
        ("--data", "one.npy", "1 example is too few"),
        ("--data", "wrong.npy", "Tiny refused a batch, called with ((2, 5, 8, 8)"),
        ("--data", "wrong.npy", "let --data yield batches that fit forward"),
        ("--data", "nan.npy", "the argument 'image' holds NaN or infinite values in example 1"),
        ("--tasks", "naer", "the selector 'naer' misses at 'naer'; there the model returns a dict with keys"),
        ("--tasks", "tiny:number", "is of type int. Name a sequence of Task"),
        ("--tasks", "tiny:images", "expected Task objects, found Tensor"),
        ("--weights", "text.safetensors", "'text.safetensors' cannot be read as weights (SafetensorError: "),
        ("--weights", "text.pt", "'text.pt' holds a str, not a state dict of tensors"),
        ("--weights", "epochs.pt", "'epochs.pt' holds the keys epoch, lr, not a state dict of tensors"),
        ("--macs", "0.0001", "cannot be met"),
        ("--protect", "faar.*", "the protected pattern 'faar.*' matches no channel group"),
        ("--tolerance", "height=1", "'height'"),
        ("--priority", "height=2", "'height'"),
    ],
)
def test_bad_input_is_named_with_the_remedy(tiny, capsys, option, value, message):
    Path("needs_absent.py").write_text("import gone\n")
    Path("typo.py").write_text("def build(:\n")
    Path("quits.py").write_text("def build():\n    raise SystemExit(7)\n")
    Path("broken.npy").write_bytes(b"no array")
    Path("text.safetensors").write_bytes(b"hello")
    torch.save("a string", "text.pt")
    torch.save({}, "nothing.pt")
    torch.save({"epoch": 3, "lr": 0.1}, "epochs.pt")
    np.save("stored.npy", np.zeros((4, 8, 8, 3), np.uint8))
    np.save("one.npy", np.zeros((1, 3, 8, 8), np.float32))
    np.save("wrong.npy", np.zeros((6, 5, 8, 8), np.float32))
    np.save("nan.npy", np.stack([np.zeros((3, 8, 8)), np.full((3, 8, 8), np.nan)]))
    assert message in refusal(capsys, *prune_tiny(option, value))
    assert not Path("out").exists()


def test_a_loss_that_is_not_finite_is_named(tiny, capsys):
    said = refusal(capsys, *prune_tiny("--method", "disparse", "--tasks", "tiny:not_finite"))
    assert "task 'near': its loss is nan" in said


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.write_text, (Path("ran"), "code ran")


@pytest.mark.parametrize(("option", "name"), [("--data", "x.pt"), ("--data", "x.npy"), ("--weights", "x.pt")])
def test_a_file_runs_no_code_and_no_advice_to_run_it_is_passed_on(tiny, capsys, option, name):
    Path("x.pt").write_bytes(pickle.dumps(Payload(), 2))
    np.save("x.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    said = refusal(capsys, *prune_tiny(option, name))
    assert "cannot be read" in said
    assert "weights_only" not in said
    assert not Path("ran").exists()


def test_advice_names_options(tiny, capsys):
    Path("moody.py").write_text(
        "import torch\nfrom tiny import Tiny, images\n"
        "class Moody(Tiny):\n"
        "    def forward(self, image):\n"
        "        return super().forward(image + torch.rand_like(image))\n"
    )
    said = refusal(capsys, *prune_tiny("--method", "disparse", "--refit", "none", model="moody:Moody"))
    assert "or give --no-verify" in said
    assert ".. " not in said
    assert in_options("Pass verify=False, or pass verify=False.") == "Give --no-verify, or give --no-verify."


@pytest.mark.parametrize(
    "words", ["prune --json", "show absent --json", "inspect --model tiny:buidl --example 1x3 --json"]
)
def test_with_json_an_error_is_the_document(tiny, capsys, words):
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert set(error) == {"type", "message"}
    assert shown.err == f"disparse: error: {error['message']}\n"
    assert error["type"] == ("LoadError" if words.startswith("show") else "UsageError")


def test_ctrl_c(tiny, capsys):
    Path("stops.py").write_text("def build():\n    raise KeyboardInterrupt\n")
    assert main(["inspect", "--model", "stops:build", "--example", "1x3"]) == 130
    assert capsys.readouterr().err == "disparse: interrupted\n"


def test_a_file_that_failed_to_import_is_run_again(tiny, capsys):
    Path("late.py").write_text("raise ValueError('not yet')\n")
    words = ["inspect", "--model", "late.py:build", "--example", "2x3x8x8"]
    assert "raised ValueError: not yet" in refusal(capsys, *words)
    Path("late.py").write_text("from tiny import build\n")
    assert main(words) == 0


def test_a_reader_that_has_seen_enough_is_no_fault(tiny, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([*INSPECT, "--json"]) == 1
