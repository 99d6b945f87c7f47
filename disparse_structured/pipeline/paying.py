"""Which layers of an ONNX file are faster in INT8 in their place, by the times of single layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Paying:
    """Milliseconds that INT8 saves, predicted.

    Args:
        as_float: the time of each layer in float.
        int8: the time of each layer in INT8.
        between: the time of all conversions, with some layers in INT8; there are none inside a region.
    """

    as_float: Mapping[str, float]
    int8: Mapping[str, float]
    between: Callable[[Collection[str]], float]

    def total(self, layers: Collection[str]) -> float:
        """The time saved with ``layers`` in INT8; below 0 it is lost.

        >>> paying = Paying({"a": 2.0, "b": 0.1}, {"a": 1.0, "b": 0.2}, lambda layers: 0.3 * bool(layers))
        >>> paying.total(["a"]), paying.kept(["a", "b"])
        (0.7, ('a',))
        """
        return sum(self.as_float[name] - self.int8[name] for name in layers) - self.between(layers)

    def won(self, layers: Collection[str]) -> dict[str, float]:
        """By layer, the time that it saves among ``layers``; conversions cost time next to float layers."""
        whole = self.total(layers)
        return {name: whole - self.total([each for each in layers if each != name]) for name in layers}

    def at(self, name: str, layers: Collection[str]) -> float:
        """The time that ``name`` saves in INT8, with the others of ``layers`` in INT8."""
        others = [each for each in layers if each != name]
        return self.total([*others, name]) - self.total(others)

    def kept(self, layers: Collection[str]) -> tuple[str, ...]:
        """``layers`` without those that cost time; empty if all together save none.

        All layers that cost time are left out at once. The order does not matter: without them, the others
        cannot save more, because these layers can only have spared them conversions.
        """
        found = list(layers)
        while True:
            won = self.won(found)
            left = [name for name in found if won[name] >= 0]
            if len(left) == len(found):
                return tuple(found) if self.total(found) > 0 else ()
            found = left
