"""Task affinity as a tree: average linkage on the distance 1 - affinity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from disparse_structured.errors import TaskError


@dataclass(frozen=True)
class Merge:
    """Two clusters become one at a ``distance`` of 1 - their mean affinity."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    distance: float

    @property
    def members(self) -> tuple[str, ...]:
        """The tasks of both, left to right."""
        return self.left + self.right


def dendrogram(tasks: Sequence[str], affinity: Sequence[Sequence[float]]) -> tuple[Merge, ...]:
    """The merges of average linkage (UPGMA), nearest first; none for a single task.

    Args:
        affinity: ``[tasks][tasks]``, symmetric, in 0..1.

    The result does not depend on the order of the tasks.
    """
    if len(tasks) < 2:
        return ()
    order = sorted(range(len(tasks)), key=lambda place: tasks[place])
    distance = 1.0 - np.asarray(affinity, dtype=np.float64)[np.ix_(order, order)]
    np.fill_diagonal(distance, 0.0)
    clusters: list[tuple[str, ...]] = [(tasks[place],) for place in order]
    merges = []
    for a, b, height, _ in linkage(squareform(distance, checks=False), "average"):
        merge = Merge(clusters[int(a)], clusters[int(b)], float(height))
        clusters.append(merge.members)
        merges.append(merge)
    return tuple(merges)


def cut(
    tasks: Sequence[str], merges: Sequence[Merge], *, count: int | None = None, distance: float | None = None
) -> tuple[tuple[str, ...], ...]:
    """The clusters at a height of the tree: ``count`` of them, or those nearer than ``distance``.

    Clusters, and the tasks in each, follow the order of ``tasks``. Raises :class:`TaskError` unless exactly
    one of the two is given and ``count`` is possible.
    """
    if count is not None and distance is None:
        if not 1 <= count <= len(tasks):
            raise TaskError(f"count={count}: {len(tasks)} tasks make 1 to {len(tasks)} clusters.")
        taken = merges[: len(tasks) - count]
    elif distance is not None and count is None:
        taken = [merge for merge in merges if merge.distance <= distance]
    else:
        raise TaskError(f"count={count} and distance={distance}: give exactly one of them.")
    found: dict[str, tuple[str, ...]] = {task: (task,) for task in tasks}
    for merge in taken:
        for task in merge.members:
            found[task] = merge.members
    ordered = (tuple(task for task in tasks if task in members) for members in found.values())
    return tuple(dict.fromkeys(ordered))
