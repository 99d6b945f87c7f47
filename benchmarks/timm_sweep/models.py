"""The choice of models: the smallest of every timm module, a random draw, or names and patterns."""

from __future__ import annotations

import json
import random
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import timm
import torch

from benchmarks.harness import files
from benchmarks.harness.files import write_text

CACHE = files.CACHE / f"timm-{timm.__version__}-parameters.json"
LARGEST = 60_000_000
"""Models with more parameters are not drawn."""


@dataclass(frozen=True)
class Selection:
    """Models that belong together, and what the page calls them."""

    title: str
    models: tuple[str, ...]


class SelectionError(Exception):
    """No model fits the request."""


def counted(names: Iterable[str], cache: Path = CACHE) -> dict[str, int]:
    """The parameters of each model, built without its weights; models that cannot be built so are left out.

    Counts are kept in ``cache``. The thousand models of timm take five minutes.
    """
    known: dict[str, int | None] = json.loads(cache.read_text(encoding="utf-8")) if cache.is_file() else {}
    names = list(names)
    missing = [name for name in names if name not in known]
    for place, name in enumerate(missing, 1):
        known[name] = _parameters(name)
        if place % 100 == 0 or place == len(missing):
            _keep(known, cache)
    return {name: count for name in names if (count := known[name]) is not None}


def smallest(counts: Mapping[str, int], modules: Mapping[str, Sequence[str]]) -> Selection:
    """The model with the fewest parameters of each module (name to its models), in the modules' order."""
    found = []
    for models in modules.values():
        counted_ones = [name for name in models if name in counts]
        if counted_ones:
            found.append(min(counted_ones, key=lambda name: (counts[name], name)))
    return Selection("The smallest model of every module", tuple(found))


def drawn(counts: Mapping[str, int], without: Iterable[str], number: int, seed: int) -> Selection:
    """``number`` models of at most :data:`LARGEST` parameters, drawn with ``seed`` and not in ``without``.

    Raises:
        SelectionError: there are fewer such models.
    """
    taken = set(without)
    able = sorted(name for name, count in counts.items() if count <= LARGEST and name not in taken)
    if number > len(able):
        raise SelectionError(f"{number} models cannot be drawn: there are {len(able)}. Draw fewer.")
    models = sorted(random.Random(seed).sample(able, number))
    return Selection(f"{number} models drawn with seed {seed}", tuple(models))


def named(patterns: Sequence[str]) -> Selection:
    """Models by name or by ``fnmatch`` pattern; a name that timm does not know is kept, and its row says so.

    Raises:
        SelectionError: a pattern matches nothing.
    """
    found: list[str] = []
    known = timm.list_models()
    for pattern in patterns:
        if not any(sign in pattern for sign in "*?["):
            found.append(pattern)
            continue
        matching = [name for name in known if fnmatchcase(name, pattern)]
        if not matching:
            raise SelectionError(f"no model of timm {timm.__version__} matches {pattern!r}.")
        found += matching
    title = textwrap.shorten(" ".join(patterns), 80, placeholder=" …")
    return Selection(f"Models {title}", tuple(dict.fromkeys(found)))


def takes_any_size(name: str) -> bool:
    """Whether no parameter of the model depends on the size of the images."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return config is not None and not config.fixed_input_size


def modules() -> dict[str, list[str]]:
    """The models of every timm module."""
    return {module: timm.list_models(module=module) for module in timm.list_modules()}


def _parameters(name: str) -> int | None:
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # a constructor that looks at the values of its tensors may raise anything
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def _keep(known: Mapping[str, int | None], cache: Path) -> None:
    write_text(cache, json.dumps(dict(sorted(known.items())), indent=0) + "\n")
