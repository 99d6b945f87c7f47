"""Checks of arguments: each error says what was found and what to pass instead."""

from __future__ import annotations

import errno
import inspect
import math
import numbers
import os
import re
from pathlib import Path
from typing import Any, TypeGuard

from disparse_structured.errors import DisparseError, OptionError

SEEDS = 2**32
"""Seeds are below this, the range that every random generator in use accepts."""

_LONGEST = 60


def shown(value: object) -> str:
    """``value`` for a message: its representation if that is one short line, else its type.

    >>> shown({"macs": 0.5}), shown(list(range(1000)))
    ("{'macs': 0.5}", 'a value of type list')
    """
    text = repr(value)
    return text if len(text) <= _LONGEST and text.isprintable() else f"a value of type {type(value).__name__}"


def check_object(
    name: str,
    value: object,
    kind: type[Any] | tuple[type[Any], ...],
    wanted: str,
    remedy: str = "",
    error: type[DisparseError] = OptionError,
) -> None:
    """Raises ``error`` unless ``value`` is an instance of ``kind``. For a class, the error says so.

    >>> check_object("budget", 3, dict, "a dict", "Pass one.")
    Traceback (most recent call last):
    ...
    disparse_structured.errors.OptionError: budget must be a dict, got 3. Pass one.
    """
    check_not_class(name, value, error)
    if not isinstance(value, kind):
        raise error(f"{name} must be {wanted}, got {shown(value)}. {remedy}".rstrip())


def check_not_class(name: str, value: object, error: type[DisparseError] = OptionError) -> None:
    """Raises ``error`` if ``value`` is a class instead of an object."""
    if isinstance(value, type):
        kind = value.__name__
        raise error(f"{name} must be an object, got the class {kind}. Create one: {kind}().")


def check_callable(
    name: str,
    value: object,
    arguments: int,
    remedy: str,
    error: type[DisparseError] = OptionError,
    *,
    classes: bool = False,
) -> None:
    """Raises ``error`` unless ``value`` can be called with this number of ``arguments``.

    A class is an error too, unless ``classes``.
    """
    if not classes:
        check_not_class(name, value, error)
    if not callable(value):
        raise error(f"{name} must be callable, got {shown(value)}. {remedy}")
    try:
        taken = inspect.signature(value)
    except (TypeError, ValueError):  # functions written in C may have none
        return
    try:
        taken.bind(*[None] * arguments)
    except TypeError:
        count = "1 argument" if arguments == 1 else f"{arguments} arguments"
        raise error(f"{name} is called with {count}, but takes {taken}. {remedy}") from None


def check_counts(least: int = 1, /, **counts: object) -> None:
    """Raises :class:`OptionError` unless all ``counts`` are whole numbers of at least ``least``.

    >>> check_counts(rounds=0)
    Traceback (most recent call last):
    ...
    disparse_structured.errors.OptionError: rounds=0 must be a whole number of at least 1.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, numbers.Integral) or int(count) < least:
            raise OptionError(f"{name}={shown(count)} must be a whole number of at least {least}.")


def check_positive(**values: object) -> None:
    """Raises :class:`OptionError` unless all ``values`` are finite numbers above 0."""
    for name, value in values.items():
        if not is_number(value) or not value > 0:
            raise OptionError(f"{name}={shown(value)} must be a finite number above 0.")


def check_shares(**shares: object) -> None:
    """Raises :class:`OptionError` unless all ``shares`` are numbers from 0 to 1.

    >>> check_shares(until=2.0)
    Traceback (most recent call last):
    ...
    disparse_structured.errors.OptionError: until=2.0 must be a number from 0 to 1.
    """
    for name, share in shares.items():
        if not is_number(share) or not 0 <= share <= 1:
            raise OptionError(f"{name}={shown(share)} must be a number from 0 to 1.")


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_seed(seed: object) -> None:
    """Raises :class:`OptionError` unless ``seed`` is a whole number from 0 to :data:`SEEDS` - 1."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < SEEDS:
        raise OptionError(f"seed={shown(seed)} must be a whole number from 0 to {SEEDS - 1}.")


def percentage(given: object) -> object:
    """Return the share that a text such as ``"50%"`` stands for, if it is below 1; anything else as it is.

    >>> percentage("50%"), percentage("200%"), percentage(1000)
    (0.5, '200%', 1000)
    """
    text = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", given) if isinstance(given, str) else None
    share = float(text[1]) / 100 if text else math.inf
    return share if share < 1 else given


def as_path(name: str, value: object) -> Path:
    """``value``, a string or a path, as a path.

    Raises:
        OptionError: it is something else, is empty, or cannot be a path.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise OptionError(f"{name} must be a path, got {shown(value)}. Pass a string or a pathlib.Path.")
    try:
        os.stat(value)
    except (OSError, ValueError) as error:  # a null character, a name that is too long
        if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
            raise OptionError(f"{name}={shown(value)} cannot be a path: {error}. Choose another.") from None
    return Path(value)
