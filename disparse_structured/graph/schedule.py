"""Schedules a graph's operators when those that share a weight must run together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from torch import fx

from disparse_structured.graph.capture import Capture

Step = tuple[fx.Node, ...]
"""Operators that run together."""


def separable(capture: Capture, groups: Sequence[Step]) -> tuple[Step, ...]:
    """Select the ``groups`` that can run as one step: their operators do not depend on one another."""
    valid = [group for group in groups if not _feeds_itself(capture, group)]
    while True:
        try:
            TopologicalSorter(_sources(capture, _members(capture, valid), valid)).prepare()
            return tuple(valid)
        except CycleError as error:
            cycle = set(error.args[1])
            valid.remove(next(group for group in reversed(valid) if len(group) > 1 and group[0] in cycle))


def schedule(capture: Capture, groups: Sequence[Step]) -> list[Step]:
    """Order the operators that the tasks' outputs need, close to the graph's order; a group is one step.

    ``groups`` must be :func:`separable`.
    """
    members = _members(capture, groups)
    sources = _sources(capture, members, groups)
    place = {node: number for number, node in enumerate(capture.graph.nodes)}
    steps: list[Step] = []
    done: set[fx.Node] = set()
    # Depth first: a step runs once the next one in the graph's order needs it.
    pending = sorted(members, key=place.__getitem__, reverse=True)
    while pending:
        head = pending[-1]
        missing = sorted(sources[head] - done, key=place.__getitem__, reverse=True)
        if missing and head not in done:
            pending.extend(missing)
            continue
        pending.pop()
        if head not in done:
            done.add(head)
            steps.append(tuple(members[head]))
    return steps


def last_uses(capture: Capture, steps: Sequence[Step]) -> list[list[fx.Node]]:
    """List for each step the nodes that no later step reads, except the tasks' outputs."""
    seen = set(_results(capture))
    last: list[list[fx.Node]] = [[] for _ in steps]
    for number in range(len(steps) - 1, -1, -1):
        for node in steps[number]:
            for each in (*node.all_input_nodes, node):
                if each not in seen:
                    last[number].append(each)
                seen.add(each)
    return last


def _results(capture: Capture) -> list[fx.Node]:
    """The tasks' outputs."""
    return [each for each in capture.outputs[: sum(capture.widths)] if isinstance(each, fx.Node)]


def _members(capture: Capture, groups: Sequence[Step]) -> dict[fx.Node, list[fx.Node]]:
    """The needed operators of every step, by the step's first operator."""
    pending = _results(capture)
    needed: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(capture.effects.sources[node])
    leader = _leaders(groups)
    members: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in capture.graph.nodes:
        if node in needed and node.op not in ("placeholder", "output"):
            members[leader.get(node, node)].append(node)
    return members


def _sources(
    capture: Capture, members: dict[fx.Node, list[fx.Node]], groups: Sequence[Step]
) -> dict[fx.Node, set[fx.Node]]:
    """The steps that must run before each step: its sources, and the readers of what it overwrites."""
    effects, leader = capture.effects, _leaders(groups)
    return {
        head: {
            owner
            for node in nodes
            for source in (*effects.sources[node], *effects.readers.get(node, ()))
            if (owner := leader.get(source, source)) in members and owner is not head
        }
        for head, nodes in members.items()
    }


def _leaders(groups: Sequence[Step]) -> dict[fx.Node, fx.Node]:
    return {node: group[0] for group in groups for node in group}


def _feeds_itself(capture: Capture, group: Step) -> bool:
    return any(source in group for node in group for source in capture.effects.sources[node])
