"""Settings files: the options of a command as TOML, to keep, review and run again."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from disparse_structured.cli.usage import Parser, UsageError, suggestion
from disparse_structured.files import SETTINGS, write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMANDS = ("prune", "train")
"""The commands that take a settings file."""

_ELSEWHERE = ("help", "json", "quiet", "save_settings")
"""Options that do not change the result: they are given on the command line only."""

_INSTEAD = (
    frozenset({"macs", "parameters", "latency"}),
    frozenset({"data", "images"}),
    frozenset({"distill-minutes", "distill-steps"}),
)
"""Within each set, an option on the command line replaces the others in the file."""


def with_settings(argv: Sequence[str], parser: Parser) -> list[str]:
    """``argv``, where a settings file that follows the command is replaced by the options that it holds.

    Options on the command line override those in the file.

    Raises:
        UsageError: the file cannot be read, is of another command, or holds a key that is not an option.
    """
    if len(argv) < 2 or argv[0] not in COMMANDS or not argv[1].endswith(".toml"):
        return list(argv)
    command, path, rest = argv[0], Path(argv[1]), list(argv[2:])
    actions = _actions(parser, command)
    found = _read(path)
    if found.pop("command", command) != command:
        raise UsageError(f"{path} holds the settings of another command. Pass it to that command.")
    given = {key for key, action in actions.items() if any(_is(word, action) for word in rest)}
    words: list[str] = []
    for key, value in found.items():
        if key not in actions:
            raise UsageError(f"{path}: {key!r} is not an option. {suggestion(key, actions, 'option')}")
        if key not in given and not any(key in either and either & given for either in _INSTEAD):
            words += _words(path, key, actions[key], value)
    return [command, *words, *rest]


def settings_text(arguments: argparse.Namespace, parser: Parser) -> str:
    """The settings file that has the same effect as ``arguments``."""
    import tomli_w  # needed only here

    values = {
        key: _written(getattr(arguments, action.dest))
        for key, action in _actions(parser, arguments.command).items()
        if getattr(arguments, action.dest) not in (None, [])
    }
    return (
        f"# disparse-structured {version('disparse-structured')}. To repeat: "
        f"disparse {arguments.command} {SETTINGS}\n" + tomli_w.dumps({"command": arguments.command, **values})
    )


def save_settings(arguments: argparse.Namespace, parser: Parser) -> None:
    """Writes the file that ``--save-settings`` names.

    Raises:
        SaveError: it cannot be written.
    """
    write_text(arguments.save_settings, settings_text(arguments, parser))


def _actions(parser: Parser, command: str) -> dict[str, argparse.Action]:
    """The options of ``command`` by the keys that name them in a file."""
    commands = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    actions: dict[str, argparse.Action] = {}
    for action in commands.choices[command]._actions:
        if action.dest not in _ELSEWHERE and action.help is not argparse.SUPPRESS:
            actions[action.dest.replace("_", "-")] = action
    return actions


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"the settings file {str(path)!r} does not exist in {str(Path.cwd())!r}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"the settings file {str(path)!r} cannot be read as TOML ({error}).") from error


def _is(word: str, action: argparse.Action) -> bool:
    return word.partition("=")[0] in action.option_strings


def _words(path: Path, key: str, action: argparse.Action, value: Any) -> Iterator[str]:
    """The words of the command line that give ``action`` this ``value``."""
    on = next((name for name in action.option_strings if not name.startswith("--no-")), None)
    off = next((name for name in action.option_strings if name.startswith("--no-")), None)
    if isinstance(value, bool):
        if action.nargs != 0 and not (value and action.nargs == "?"):
            raise UsageError(f"{path}: {key} is {str(value).lower()}. Give a value, or leave it out.")
        chosen = on if value else off
        if chosen is not None:
            yield chosen
        return
    if action.nargs == 0:
        raise UsageError(f"{path}: {key} is {value!r}. Give true or false.")
    assert on is not None  # only flags have no positive form
    repeated = isinstance(action, argparse._AppendAction)
    if isinstance(value, Mapping) and repeated:
        value = [f"{name}={number}" for name, number in value.items()]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
        raise UsageError(f"{path}: {key} is {value!r}. Give a string, a number, or a list of them.")
    if repeated:
        for each in values:
            yield f"{on}={each}"
    elif action.nargs == "+":
        yield from (on, *map(str, values))
    else:
        yield f"{on}={','.join(map(str, values))}"


def readable(word: str) -> str:
    """``word`` of a command line as Unicode, with a sign in place of bytes that are not UTF-8."""
    return os.fsencode(word).decode(errors="replace")


def _written(value: Any) -> Any:
    """``value`` as TOML holds it, in the form that the option itself takes."""
    if isinstance(value, list):
        return [_written(each) for each in value]
    if isinstance(value, tuple):
        if all(isinstance(each, int) for each in value):
            return "x".join(map(str, value))
        if isinstance(value[-1], float) and (value[0] is None or isinstance(value[0], str)):
            return str(value[1]) if value[0] is None else f"{value[0]}={value[1]}"
        return list(value)
    return readable(str(value)) if isinstance(value, Path | str) else value
