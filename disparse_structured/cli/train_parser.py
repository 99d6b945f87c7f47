"""The parser of ``disparse train``; importing this module imports nothing heavy."""

from __future__ import annotations

import argparse

from disparse_structured.cli import names, options, values
from disparse_structured.cli.usage import Parser

REGIMES = ("pretrained", "static", "early", "dynamic")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds the command to ``commands``."""
    parser = options.add_command(
        commands,
        "train",
        usage="[SETTINGS.toml] --model FACTORY --data DATA --tasks TASKS --regime REGIME --epochs N\n"
        "                      (--macs N | --parameters N) --out DIR [options]",
        help="train a model and prune it before, at the start of, or during training",
        description="Train a model under a pruning regime. If the training is interrupted, the same command\n"
        "resumes it from checkpoint.pt, to the same result. torchrun distributes it over processes.\n"
        f"Writes {options.FILES}.",
    )
    subject = parser.add_argument_group("model and data")
    options.add_model(subject)
    options.add_weights(subject)
    options.add_loader(subject)
    options.add_tasks(subject, required=True)
    options.add_calls(subject)
    budget = parser.add_argument_group("budget")
    options.add_limit(budget)
    options.add_widths(budget)
    _add_regime(parser.add_argument_group("method", options.OWN))
    training = parser.add_argument_group("training")
    add_training(training)
    _add_teacher(training)
    output = parser.add_argument_group("output")
    options.add_out(output)
    options.add_delivery(output)
    options.add_save_settings(output)
    options.add_json(output)


def _add_regime(method: options.Group) -> None:
    method.add_argument(
        "--regime",
        required=True,
        choices=REGIMES,
        help="pretrained: prune a trained model, then fine-tune it; static: prune at initialization, then "
        "train; early: prune in the first epochs, once the votes settle; dynamic: remove and regrow units "
        "during training",
    )
    method.add_argument(
        "--method",
        metavar="NAME",
        help="how to decide what is removed, as in disparse prune (default: compensated for --regime "
        "pretrained, disparse otherwise)",
    )
    options.add_rules(
        method,
        criterion="taylor for compensated, snip for --regime static, fisher otherwise",
        arbiter="weighted-mean for compensated, unanimous otherwise",
    )
    method.add_argument(
        "--refit",
        metavar="NAME",
        help="pretrained: how the remaining weights are refit after units were removed: "
        f"{', '.join(names.REFITS)} (default: least-squares)",
    )
    method.add_argument(
        "--scoring-batches",
        type=values.count(),
        default=8,
        metavar="N",
        help="batches of --data read to score the units (default: 8)",
    )
    method.add_argument(
        "--stages",
        type=values.count(),
        metavar="N",
        help="pretrained: prune in N stages, with training in between (default: 1)",
    )
    method.add_argument(
        "--every",
        type=values.count(),
        metavar="N",
        help="training steps between votes (early; default: an epoch) or exchanges of units (dynamic; "
        "default: 100, or fewer in a short run)",
    )
    method.add_argument(
        "--fraction",
        type=values.share_below_one,
        metavar="F",
        help="dynamic: share of the budget that the first exchange moves (default: 0.3)",
    )
    method.add_argument(
        "--start",
        type=values.share,
        metavar="F",
        help="pretrained: share of the training steps after which the first of --stages runs, for a model "
        "that is not trained yet (default: 0)",
    )
    method.add_argument(
        "--agreement",
        type=values.share_above_zero,
        metavar="F",
        help="early: overlap of each task's votes with those before at which to prune (default: 0.5)",
    )
    method.add_argument(
        "--until",
        type=values.share_above_zero,
        metavar="F",
        help="share of the training steps after which the last of --stages runs (default: 0.4), the mask is "
        "fixed (dynamic; default: 0.75), or pruning waits no longer (early; default: 0.3)",
    )
    options.add_seed(method)


def _add_teacher(training: options.Group) -> None:
    training.add_argument(
        "--teacher-weight",
        type=values.positive,
        metavar="W",
        help="also learn from the dense model's outputs, with this loss weight",
    )
    training.add_argument(
        "--teacher", type=values.weights_file, metavar="FILE", help="weights of the model to learn from"
    )


def add_training(training: options.Group) -> None:
    """The options of training."""
    count, positive = values.count(), values.positive
    training.add_argument("--epochs", type=count, required=True, metavar="N", help="passes over --data")
    training.add_argument(
        "--lr", type=positive, default=1e-3, metavar="X", help="peak learning rate (default: 0.001)"
    )
    training.add_argument(
        "--weight-decay",
        type=values.not_negative,
        default=0.01,
        metavar="X",
        help="weight decay (default: 0.01)",
    )
    training.add_argument(
        "--validation", metavar="LOADER", help="batches to evaluate after each epoch, given like --data"
    )
    training.add_argument(
        "--patience",
        type=count,
        metavar="N",
        help="stop N epochs after the best --validation loss, and keep the weights of that epoch",
    )
    training.add_argument(
        "--precision", choices=PRECISIONS, default="32-true", help="training precision (default: 32-true)"
    )
    training.add_argument(
        "--checkpoint-every",
        type=count,
        default=100,
        metavar="N",
        help="training steps between checkpoints (default: 100)",
    )
