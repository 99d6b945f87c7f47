"""The one table from names on the command line to objects of the library, which are made when asked for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import disparse_structured as ds
from disparse_structured.cli.lookup import check_spec, find
from disparse_structured.cli.usage import UsageError, suggestion

if TYPE_CHECKING:
    from disparse_structured.decision.arbiters import Arbiter
    from disparse_structured.decision.rankings import Ranking
    from disparse_structured.latency import Runtime
    from disparse_structured.pipeline import Method
    from disparse_structured.refit import RefitMethod
    from disparse_structured.scoring import Criterion

METHODS: Mapping[str, Callable[..., Method]] = {
    "compensated": lambda **parts: ds.Compensated(**parts),
    "disparse": lambda **parts: ds.DiSparse(**parts),
    "iterative": lambda **parts: importlib.import_module("disparse_structured.pipeline").Iterative(**parts),
}

CRITERIA: Mapping[str, Callable[[], Criterion]] = {
    "fisher": lambda: ds.criteria.Fisher(),
    "taylor": lambda: ds.criteria.Taylor(),
    "snip": lambda: ds.criteria.SNIP(),
    "obd": lambda: ds.criteria.DiagonalHessian(),
    "learned": lambda: ds.criteria.Learned(),
    "l1": lambda: ds.criteria.Magnitude(p=1),
    "l2": lambda: ds.criteria.Magnitude(p=2),
    "random": lambda: ds.criteria.Random(),
}

RUNTIMES: Mapping[str, str] = {"onnxruntime": "OnnxRuntime", "openvino": "OpenVINO"}
"""Classes of :mod:`disparse_structured.latency` by name, the default first."""

ARBITERS: Mapping[str, Callable[[], Arbiter]] = {
    "unanimous": lambda: ds.arbiters.Unanimous(),
    "majority": lambda: ds.arbiters.Majority(),
    "any": lambda: ds.arbiters.AnyTask(),
    "weighted-mean": lambda: ds.arbiters.WeightedMean(),
    "minimax": lambda: ds.arbiters.Minimax(),
    "priority": lambda: ds.arbiters.Priority(),
}

QUORUM = "quorum:K"

RANKINGS: Mapping[str, Callable[[], Ranking]] = {
    "global": lambda: ds.rankings.GlobalRanking(),
    "per-cost": lambda: ds.rankings.PerCostRanking(),
    "isomorphic": lambda: ds.rankings.IsomorphicRanking(),
    "layer": lambda: ds.rankings.LayerRanking(),
}

REFITS: Mapping[str, Callable[[], RefitMethod | None]] = {
    "least-squares": lambda: ds.refits.LeastSquares(),
    "affine": lambda: ds.refits.Affine(),
    "batch-norm": lambda: ds.refits.BatchNormStatistics(),
    "folding": lambda: ds.refits.ModelFolding(),
    "none": lambda: None,
}

_TABLES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "method": METHODS,
    "criterion": CRITERIA,
    "arbiter": ARBITERS,
    "ranking": RANKINGS,
    "refit": REFITS,
}


def check(arguments: argparse.Namespace) -> None:
    """Raises :class:`UsageError` for a name that no table holds; imports nothing."""
    for option, table in _TABLES.items():
        name = getattr(arguments, option, None)
        if name is None:
            continue
        if option == "arbiter" and name.partition(":")[0] == "quorum":
            _votes(name)
        elif ":" in name:
            check_spec(name, f"--{option}")
        elif name not in table:
            known = [*table, QUORUM] if option == "arbiter" else table
            raise UsageError(f"--{option} {name!r} is unknown. {suggestion(name, known, option)}")


def runtime(name: str | None, **setting: Any) -> Runtime:
    """The runtime called ``name`` with its ``setting``; the default one if there is no name."""
    library = importlib.import_module("disparse_structured.latency")
    found: Runtime = getattr(library, RUNTIMES[name or next(iter(RUNTIMES))])(**setting)
    return found


def method(arguments: argparse.Namespace, name: str) -> Method:
    """The method called ``name``, with the criterion, arbiter and ranking that were given."""
    chosen = parts(arguments)
    if ":" not in name:
        return METHODS[name](**chosen)
    found: Any = find(name, "--method")
    if isinstance(found, type):
        found, chosen = found(**chosen), {}
    if chosen:
        option = next(iter(chosen))
        raise UsageError(f"--method {name!r} is an object already. Leave out --{option}.")
    made: Method = found
    return made


def parts(arguments: argparse.Namespace) -> dict[str, Any]:
    """The criterion, arbiter and ranking that the arguments name, without those left to the default."""
    chosen: dict[str, Any] = {}
    if arguments.criterion is not None:
        chosen["criterion"] = criterion(arguments.criterion)
    if getattr(arguments, "priority", None):
        chosen["arbiter"] = ds.arbiters.Priority(dict(arguments.priority))
    elif arguments.arbiter is not None:
        chosen["arbiter"] = arbiter(arguments.arbiter)
    if arguments.ranking is not None:
        chosen["ranking"] = ranking(arguments.ranking)
    return chosen


def criterion(name: str) -> Criterion:
    """The criterion called ``name``."""
    made: Criterion = _made("criterion", name)
    return made


def arbiter(name: str) -> Arbiter:
    """The arbiter called ``name``, such as ``quorum:2``."""
    if name.partition(":")[0] == "quorum":
        return ds.arbiters.Quorum(_votes(name))
    made: Arbiter = _made("arbiter", name)
    return made


def ranking(name: str) -> Ranking:
    """The ranking called ``name``."""
    made: Ranking = _made("ranking", name)
    return made


def refit(name: str) -> RefitMethod | None:
    """The refit called ``name``."""
    made: RefitMethod | None = _made("refit", name)
    return made


def _made(option: str, name: str) -> Any:
    """From the table, or the object at ``package.module:name``; a class is called without arguments."""
    if ":" not in name:
        return _TABLES[option][name]()
    found = find(name, f"--{option}")
    return found() if isinstance(found, type) else found


def _votes(name: str) -> int:
    votes = name.partition(":")[2]
    if not (votes.isdecimal() and int(votes)):
        raise UsageError(f"--arbiter {name!r} does not say how many votes. Write quorum:2, for example.")
    return int(votes)
