"""Options of the entry points: checked before any work starts."""

from __future__ import annotations

from torch import nn

from disparse_structured.decision.budget import Budget
from disparse_structured.errors import BudgetError, OptionError
from disparse_structured.structure import Structure

_EXAMPLES = {"criterion": "Fisher()", "arbiter": "Unanimous()", "ranking": "PerCostRanking()"}


def check_callables(**choices: object) -> None:
    """Raises :class:`OptionError` for the first of ``choices`` that cannot be called, or is a class."""
    for name, choice in choices.items():
        _check_object(name, choice)
        if not callable(choice):
            raise OptionError(
                f"{name} must be callable, got {choice!r}. Pass an object such as {_EXAMPLES[name]}, or a "
                "function of the same signature."
            )


def check_refit(refit: object) -> None:
    """Raises :class:`OptionError` unless ``refit`` is None or a refit method."""
    _check_object("refit", refit)
    if refit is not None and not callable(getattr(refit, "visit", None)):
        raise OptionError(
            f"refit must be a refit method such as LeastSquares(), got {refit!r}. "
            "Pass None to leave the remaining weights unchanged."
        )


def check_recover(recover: object) -> None:
    """Raises :class:`OptionError` unless ``recover`` is None or a recovery."""
    _check_object("recover", recover)
    if recover is not None and not callable(getattr(recover, "prepare", None)):
        raise OptionError(
            f"recover must be a recovery such as recovery.Distillation(images), got {recover!r}. "
            "Leave it out to train nothing."
        )


def check_method(method: object) -> None:
    """Raises :class:`OptionError` unless ``method`` is an object that can decide."""
    _check_object("method", method)
    if not callable(getattr(method, "decide", None)):
        raise OptionError(
            f"method must be an object with a decide method, got {method!r}. "
            "Pass one such as Compensated() or DiSparse()."
        )


def check_structure(structure: object, tasks: object, batched: object) -> None:
    """Raises :class:`OptionError` unless ``structure`` is None, or a structure given without the others."""
    if structure is None:
        return
    if not isinstance(structure, Structure):
        raise OptionError(
            f"structure must be what analyse() returned, got {structure!r}. "
            "Pass analyse(model, example_inputs, tasks), or leave it out."
        )
    if tasks is not None:
        raise OptionError("tasks= was given beside structure=, which has tasks already. Leave tasks= out.")
    if batched is not None:
        raise OptionError(
            "batched= was given beside structure=, which knows the batch already. Pass it to analyse()."
        )


def _check_object(name: str, choice: object) -> None:
    if isinstance(choice, type):
        raise OptionError(
            f"{name} must be an object, got the class {choice.__name__}. Create one: {choice.__name__}()."
        )


def the_budget(
    model: nn.Module,
    macs: float | None,
    parameters: float | None,
    latency: float | str | None,
    budget: Budget | None,
) -> Budget | None:
    """Return the one budget that was given, with modules replaced by their names in ``model``.

    None where the latency is limited: that budget needs a structure.

    Raises:
        OptionError: a limit stands beside ``budget``, or ``budget`` is something else.
        BudgetError: there is none, or there are two.
    """
    given = [
        f"{name}={limit:g}" if isinstance(limit, int | float) else f"{name}={limit!r}"
        for name, limit in (("macs", macs), ("parameters", parameters), ("latency", latency))
        if limit is not None
    ]
    if budget is None:
        if latency is None:
            return Budget(macs=macs, parameters=parameters)
        if len(given) > 1:
            raise BudgetError(
                f"a budget limits one cost, found {' and '.join(given)}. Leave one of them out."
            )
        return None
    if given:
        raise OptionError(
            f"{given[0]} was given beside budget=, which has a limit of its own. Leave one of the two out."
        )
    if not isinstance(budget, Budget):
        raise OptionError(f"budget must be a Budget, got {budget!r}. Pass Budget(macs=0.5), or macs=0.5.")
    return budget.named(model)


def check_runtime(runtime: object, timed: bool) -> None:
    """Raises :class:`OptionError` if ``runtime`` is given where nothing is timed, or is no runtime."""
    if runtime is None:
        return
    if not timed:
        raise OptionError("runtime= was given without latency=, so nothing would be timed. Leave it out.")
    _check_object("runtime", runtime)
    missing = [
        name
        for name in ("facts", "inputs", "dissect", "time_nodes", "time_files")
        if not hasattr(runtime, name)
    ]
    if missing:
        raise OptionError(
            f"runtime={runtime!r} is not a runtime: it has no {' and no '.join(missing)}. Pass one such as "
            "OnnxRuntime(threads=2)."
        )
