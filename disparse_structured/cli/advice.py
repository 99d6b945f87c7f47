"""The library's advice in the words of the command line."""

from __future__ import annotations

import re

_OPTIONS = {
    r"pass verify=False": "give --no-verify",
    r"pass tasks=\[Task\(name, output\)\]": "name the tasks with --tasks",
    r"pass to_inputs=, a function from a batch to (the (tuple of )?)?"
    r"(forward's (positional )?arguments|arguments of forward)": "let --data yield batches that fit forward",
    r"learn from a teacher: TrainingConfig\(\.\.\., teacher=Teacher\(dense\)\)": (
        "use disparse train --teacher-weight"
    ),
}
"""Errors of the library that advise to pass an argument, and the option that does it."""


def in_options(message: str) -> str:
    """``message`` with options in place of the library's arguments."""
    for advice, option in _OPTIONS.items():
        message = re.sub(advice, option, message)
        message = re.sub(_capitalized(advice), _capitalized(option), message)
    return message


def _capitalized(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
