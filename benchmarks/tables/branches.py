"""Is it better to share the trunk only up to the watershed, at the same total MACs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from benchmarks.data import Loader
from benchmarks.harness.views import markdown, spread
from benchmarks.tables.cells import Cell, Row
from benchmarks.tables.settings import Scale, Setup
from benchmarks.tables.views import DELTA, NOT_RUN, line
from disparse_structured.adapters.branching import branch, children_before
from disparse_structured.adapters.timm import MultiTask
from disparse_structured.relatedness import relate
from disparse_structured.tasks import Task

METHODS = ("pretrained/disparse", "static/disparse")
REMOVED = (0.5, 0.7)
RATIO = 0.7
"""The share of its units that every task gives up to find the watershed."""
SHARED, WATERSHED, NOTHING = "", "watershed", "unshared"
TRUNKS: Mapping[str, str] = {
    SHARED: "shares the whole trunk",
    WATERSHED: "shares up to the watershed",
    NOTHING: "shares nothing",
}

TITLE = "From analysis to architecture"
WORDS = (
    "Every task gets a trunk of its own from the watershed on, or from the start, and the votes prune all "
    "copies together to the MACs that the pruned shared network has. ΔT in percent against the dense shared "
    f"network; the watershed is each seed's own, at unit level, where every task gives up {RATIO:.0%}."
)


class NoWatershed(Exception):
    """The tasks' kept sets do not part anywhere in the trunk."""


def belongs(cell: Cell) -> bool:
    """Whether only this experiment has the cell."""
    return bool(cell.trunk)


def branched(
    model: MultiTask,
    example: tuple[Tensor, ...],
    tasks: Sequence[Task],
    scored: Loader,
    setup: Setup,
    cell: Cell,
) -> tuple[MultiTask, str]:
    """A copy of ``model`` with one trunk for each task, from the watershed or the start on; and what is
    shared.

    The watershed is the model's own, at unit level (:func:`disparse_structured.relatedness.relate`), on as
    many batches of ``scored`` as saliency is measured on.

    Raises:
        NoWatershed: the tasks' kept sets do not part.
    """
    if cell.trunk == NOTHING:
        return branch(model, 0), "nothing is shared"
    found = relate(
        model,
        example,
        tasks,
        scored,
        level="unit",
        ratio=RATIO,
        seeds=(cell.seed,),
        max_batches=setup.scored_batches,
    ).watershed
    if found is None:
        raise NoWatershed(
            "the tasks' kept sets do not part anywhere in the trunk, so there is no place to branch."
        )
    count = children_before(model, found.layer)
    return branch(model, count), f"shared before {found.layer}"


def cells(scale: Scale, dataset: str) -> list[Cell]:
    """Every method, share and trunk, seed by seed; those with a shared trunk are cells of the tables."""
    return [
        Cell(dataset, name, removed, seed, trunk=trunk)
        for seed in range(scale.seeds)
        for name in METHODS
        for removed in REMOVED
        for trunk in TRUNKS
    ]


def view(scale: Scale, dataset: str, rows: Mapping[Cell, Row]) -> str:
    """ΔT of every kind of trunk, and where it was cut."""
    head = ["trunk", *(f"{name}, −{removed:.0%} MACs" for name in METHODS for removed in REMOVED)]
    body = []
    for trunk, said in TRUNKS.items():
        places: list[str] = []
        shown = []
        for name in METHODS:
            for removed in REMOVED:
                group = [Cell(dataset, name, removed, seed, trunk=trunk) for seed in range(scale.seeds)]
                shown.append(_shown(group, rows, places))
        body.append([f"{said} ({', '.join(dict.fromkeys(places))})" if places else said, *shown])
    return markdown(head, body)


def _shown(group: Sequence[Cell], rows: Mapping[Cell, Row], places: list[str]) -> str:
    found = line(rows, group)
    places += [row.note for row in found.rows if row.note.startswith("shared before")]
    if not found.rows:
        return f"failed: {found.errors[0]}" if found.errors else NOT_RUN
    missing = "" if len(found.rows) == found.seeds else f" ({len(found.rows)} of {found.seeds} seeds)"
    return spread(found.values(DELTA), DELTA.digits) + missing
