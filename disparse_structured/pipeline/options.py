"""Options of the entry points: checked before any work starts."""

from __future__ import annotations

from torch import fx, nn

from disparse_structured.checks import check_callable, check_not_class, check_object, shown
from disparse_structured.decision.budget import Budget
from disparse_structured.errors import BudgetError, OptionError, TaskError
from disparse_structured.graph.unknown_sizes import has_unknown_size
from disparse_structured.structure.structure import Structure, check_structure

_RULES = {"criterion": ("Fisher()", 1), "arbiter": ("Unanimous()", 1), "ranking": ("PerCostRanking()", 3)}
"""An example of each rule, and how many arguments it takes."""


def check_rules(**choices: object) -> None:
    """Raises :class:`OptionError` for the first of ``choices`` that cannot be called as such a rule."""
    for name, choice in choices.items():
        example, arguments = _RULES[name]
        remedy = f"Pass an object such as {example}, or a function of the same signature."
        check_callable(name, choice, arguments, remedy)


def check_refit(refit: object) -> None:
    """Raises :class:`OptionError` unless ``refit`` is None or a refit method."""
    check_not_class("refit", refit)
    if refit is not None and not callable(getattr(refit, "visit", None)):
        raise OptionError(
            f"refit must be a refit method such as LeastSquares(), got {shown(refit)}. "
            "Pass None to leave the remaining weights unchanged."
        )


def check_recover(recover: object) -> None:
    """Raises :class:`OptionError` unless ``recover`` is None or a recovery."""
    check_not_class("recover", recover)
    if recover is not None and not callable(getattr(recover, "prepare", None)):
        raise OptionError(
            f"recover must be a recovery such as recovery.Distillation(images), got {shown(recover)}. "
            "Leave it out if nothing is to be trained."
        )


def check_method(method: object) -> None:
    """Raises :class:`OptionError` unless ``method`` is an object that can decide."""
    check_not_class("method", method)
    if not callable(getattr(method, "decide", None)):
        raise OptionError(
            f"method must be an object with a decide method, got {shown(method)}. "
            "Pass one such as Compensated() or DiSparse()."
        )


def check_given_structure(structure: object, tasks: object, batched: object) -> None:
    """Raises :class:`OptionError` unless ``structure`` is None, or a structure given without the others."""
    if structure is None:
        return
    check_structure(structure)
    if tasks is not None:
        raise OptionError("tasks= was given beside structure=, which has tasks already. Leave tasks= out.")
    if batched is not None:
        raise OptionError(
            "batched= was given beside structure=, which knows the batch already. Pass it to analyse()."
        )


def check_comparable(structure: Structure) -> None:
    """Raises :class:`TaskError` if the size of a task's output depends on the data.

    The outputs of the pruned network are compared with the dense one's.
    """
    for task, nodes in structure.capture.task_outputs(structure.capture.outputs).items():
        if any(isinstance(node, fx.Node) and has_unknown_size(node.meta["val"]) for node in nodes):
            raise TaskError(
                f"task {task!r}: the size of its output depends on the data, so the pruned network's output "
                "may have another size and cannot be compared with it. Pass tasks= with outputs of fixed "
                "size, such as the scores that the choice is made by."
            )


def the_budget(
    model: nn.Module,
    macs: float | str | None,
    parameters: float | str | None,
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
    check_object("budget", budget, Budget, "a Budget", "Pass Budget(macs=0.5), or macs=0.5.")
    return budget.named(model)


def check_runtime(runtime: object, timed: bool) -> None:
    """Raises :class:`OptionError` if ``runtime`` is given where nothing is timed, or is no runtime."""
    if runtime is None:
        return
    if not timed:
        raise OptionError("runtime= was given without latency=, so nothing would be timed. Leave it out.")
    check_not_class("runtime", runtime)
    missing = [
        name
        for name in ("facts", "inputs", "dissect", "time_nodes", "time_files")
        if not hasattr(runtime, name)
    ]
    if missing:
        raise OptionError(
            f"runtime={shown(runtime)} is not a runtime: it has no {' and no '.join(missing)}. Pass one "
            "such as OnnxRuntime(threads=2)."
        )
