"""Builds channel groups from solved labels: units are classes, and groups are units with one signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from disparse_structured.graph.capture import Capture
from disparse_structured.graph.operators import named_arguments, operator_of
from disparse_structured.structure.groups import ChannelGroup, Consumer, Kind, Member
from disparse_structured.structure.labels import PINNED, PinRecord
from disparse_structured.structure.tracing import Read, Trace


@dataclass(frozen=True, eq=False)
class _Place:
    """A dimension of a tensor, or of what an operator reads, with the labels of its positions."""

    labels: np.ndarray
    member: tuple[str, int] | None
    read: int | None
    attribute: tuple[str, int] | None = None


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups, the flat unit of every atom (-1: fixed), and the pins of groups with only one unit.

    ``others`` has, for each further graph of the model, the consumers of each group in that graph.
    """

    groups: tuple[ChannelGroup, ...]
    units: np.ndarray
    singletons: PinRecord | None
    others: tuple[tuple[tuple[Consumer, ...], ...], ...] = ()


def group_units(
    trace: Trace,
    classes: np.ndarray,
    pinned: np.ndarray,
    reach: Sequence[frozenset[str]],
    tasks: Sequence[str],
    others: Sequence[Sequence[Read]] = (),
) -> Grouping:
    """Group the units, in order of first parameter; ``reach[i]`` are the tasks behind ``trace.reads[i]``.

    Args:
        others: what further graphs of the model read.
    """
    input_dims = _input_dims(trace.capture)
    all_reads = [*trace.reads, *(read for reads in others for read in reads)]
    graph_of = [0] * len(trace.reads) + [number for number, reads in enumerate(others, 1) for _ in reads]
    places = [
        _Place(axis.labels, (name, dim), None)
        for name, value in trace.tensors.items()
        for dim, axis in enumerate(value)
        if axis.labels is not None
    ]
    members = len(places)
    places.extend(_Place(read.labels, None, i) for i, read in enumerate(all_reads))
    places.extend(
        _Place(axis.labels, None, None, (name, dim))
        for name, value in trace.attributes.items()
        for dim, axis in enumerate(value)
        if axis.labels is not None
    )
    free = ~pinned
    free[classes[PINNED]] = False
    positions = [classes[place.labels] for place in places]
    signature = _signatures(positions, members, free)
    order = _first_seen(positions[:members], len(free))
    groups: list[ChannelGroup] = []
    elsewhere: list[tuple[tuple[Consumer, ...], ...]] = []
    unit_of_class = np.full(len(free), -1)
    start, names = 0, dict[str, int]()
    singletons: list[np.ndarray] = []
    candidates = np.flatnonzero(free & (order < np.iinfo(np.int64).max))
    candidates = candidates[np.argsort(order[candidates], kind="stable")]
    kinds = _kinds(trace, classes)
    _, index = np.unique(signature[candidates], return_inverse=True)
    first = np.full(index.max() + 1 if index.size else 0, len(candidates))
    np.minimum.at(first, index, np.arange(len(candidates)))
    group_of_class = np.full(len(free), -1)
    group_of_class[candidates] = index
    inside = _places_of_groups([group_of_class[position] for position in positions], len(first))
    for group in np.argsort(first, kind="stable"):
        units = candidates[index == group]
        if len(units) == 1:
            singletons.append(units)
            continue
        rank = np.full(len(free), -1)
        rank[units] = np.arange(len(units))
        found = [(places[i], _positions(rank[positions[i]], len(units))) for i in inside[group]]
        owned = tuple(
            Member(*place.member, where, reads=place.member in input_dims)
            for place, where in found
            if place.member is not None
        )
        attributes = tuple(
            Member(*place.attribute, where) for place, where in found if place.attribute is not None
        )
        reads = [(place.read, where) for place, where in found if place.read is not None]
        consumers: list[list[Consumer]] = [[] for _ in range(1 + len(others))]
        for i, where in reads:
            consumers[graph_of[i]].append(_consumer(all_reads[i], where))
        elsewhere.append(tuple(map(tuple, consumers[1:])))
        reached = frozenset[str]().union(*(reach[i] for i, _ in reads if i < len(reach)))
        groups.append(
            ChannelGroup(
                name=_name(owned, names),
                units=len(units),
                members=owned,
                consumers=tuple(consumers[0]),
                reach=tuple(task for task in tasks if task in reached),
                kind=_kind(kinds, units, owned),
                start=start,
                attributes=attributes,
            )
        )
        unit_of_class[units] = start + np.arange(len(units))
        start += len(units)
    alone = np.concatenate(singletons) if singletons else np.array([], dtype=np.int64)
    record = None
    if alone.size:
        atoms = np.flatnonzero(np.isin(classes, alone))
        record = PinRecord(atoms, "only one unit", "", "")
    by_graph = tuple(tuple(each[number] for each in elsewhere) for number in range(len(others)))
    return Grouping(tuple(groups), unit_of_class[classes], record, by_graph)


def _input_dims(capture: Capture) -> set[tuple[str, int]]:
    """Name and dimension of every weight along which it is multiplied with the data."""
    found = set[tuple[str, int]]()
    for node in capture.graph.nodes:
        contracts = operator_of(node).contracts if node.op == "call_function" else None
        if contracts is None or contracts.weight is None:
            continue
        weight = named_arguments(node).get(contracts.weight)
        if isinstance(weight, fx.Node) and weight.name in capture.tensors:
            last = weight.meta["val"].ndim - 2
            dim = last if contracts.input_dim is None else contracts.input_dim
            found.add((capture.tensors[weight.name], dim))
    return found


def _consumer(read: Read, where: np.ndarray) -> Consumer:
    return Consumer(read.node, read.arg, read.dim, where, read.normalizes, read.averages, read.sample)


def _signatures(positions: list[np.ndarray], members: int, free: np.ndarray) -> np.ndarray:
    """uint64 ``[classes]``: equal for classes that occur equally often in the same places."""
    generator = np.random.Generator(np.random.PCG64(0))
    codes = generator.integers(1, 2**63, size=len(positions), dtype=np.uint64)
    signature = np.zeros(len(free), dtype=np.uint64)
    for code, position in zip(codes, positions, strict=True):
        np.add.at(signature, position, code)
    return signature


def _first_seen(positions: list[np.ndarray], count: int) -> np.ndarray:
    """int64 ``[classes]``: the first parameter position of each class, in order of the parameters."""
    seen = np.full(count, np.iinfo(np.int64).max)
    offset = 0
    for position in positions:
        np.minimum.at(seen, position, offset + np.arange(len(position)))
        offset += len(position)
    return seen


def _places_of_groups(groups: list[np.ndarray], count: int) -> list[list[int]]:
    """The places of each of ``count`` groups; ``groups`` holds the group at each position, or -1."""
    inside: list[list[int]] = [[] for _ in range(count)]
    for place, found in enumerate(groups):
        for group in np.unique(found[found >= 0]):
            inside[group].append(place)
    return inside


def _positions(ranks: np.ndarray, units: int) -> np.ndarray:
    """int64 ``[units, multiplicity]``: the positions of each unit."""
    where = np.flatnonzero(ranks >= 0)
    return where[np.argsort(ranks[where], kind="stable")].reshape(units, -1)


def _kinds(trace: Trace, classes: np.ndarray) -> dict[int, Kind]:
    kinds: dict[int, Kind] = {}
    for labels, kind in trace.kinds:
        for each in np.unique(classes[labels]):
            if kinds.get(int(each)) != "head":
                kinds[int(each)] = kind
    return kinds


def _kind(kinds: dict[int, Kind], units: np.ndarray, members: tuple[Member, ...]) -> Kind:
    if all(member.index.shape[1] == 1 for member in members):
        return kinds.get(int(units[0]), "channel") if int(units[0]) in kinds else "channel"
    return kinds.get(int(units[0]), "bundle" if int(units[0]) in kinds else "channel")


def _name(members: tuple[Member, ...], names: dict[str, int]) -> str:
    """The layer that produces the group, with a number from its second group on."""
    producer = next((member for member in members if member.dim == 0), members[0])
    name = producer.parameter.rpartition(".")[0] or producer.parameter
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}#{names[name]}"
