"""Checks of what a caller passes: an object of the right kind, or an error that says what to write."""

from __future__ import annotations

import inspect

from disparse_structured.errors import OptionError


def check_rule(option: str, rule: object, example: str) -> None:
    """Raise :class:`OptionError` unless ``rule`` can be called; ``example`` is what to write instead.

    A class is refused as well: a rule is an object of it.
    """
    check_not_class(option, rule)
    if not callable(rule):
        raise OptionError(f"{option} must be callable, got {rule!r}. Pass an object such as {example}.")


def check_not_class(option: str, given: object) -> None:
    """Raise :class:`OptionError` if ``given`` is a class where an object of it is meant."""
    if inspect.isclass(given):
        name = given.__name__
        raise OptionError(f"{option} must be an object, got the class {name}. Write {name}(), with brackets.")
