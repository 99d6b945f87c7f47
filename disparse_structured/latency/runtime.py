"""What a latency cost needs of a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, eq=False)
class Part:
    """One piece of work of a runtime: an operation and what was fused into it.

    Args:
        name: unique in its :class:`Dissection`.
        ms: the time that it takes in the whole network, milliseconds.
        sources: the parts whose numbers it reads, by position in the dissection, and how many it reads.
        node: the operation as an ONNX node that the runtime can run on its own, if it has a weight.
        weight: the weight of ``node``.
        weight_name: the name of the weight in the file.
        shape: the shape of the first input of ``node``.
    """

    name: str
    ms: float
    sources: tuple[tuple[int, int], ...]
    node: onnx.NodeProto | None = None
    weight: np.ndarray | None = None
    weight_name: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Dissection:
    """A network as a runtime runs it: its ``parts``, each after those that it reads.

    ``opsets`` are the versions by domain that the nodes are written in.
    """

    parts: tuple[Part, ...]
    opsets: Mapping[str, int]


class Runtime(Protocol):
    """Runs ONNX files on this machine and times them. All times are milliseconds."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Everything that times depend on besides the operation: versions, processor, threads."""
        ...

    def inputs(self, example_inputs: tuple[Any, ...], dynamic: str, /) -> tuple[Any, ...]:
        """The inputs to time a file with, made of ``example_inputs``.

        ``dynamic`` says which dimensions of the file are free, as in
        :class:`~disparse_structured.report.facts.ExportFacts`.
        """
        ...

    def dissect(self, path: Path, inputs: tuple[Any, ...], /) -> Dissection:
        """What the runtime makes of the file, and what each part takes."""
        ...

    def time_nodes(self, model: onnx.ModelProto, /) -> Mapping[str, float]:
        """The time of each named node of ``model``, by name.

        Nodes without a name only write the others' inputs and read their outputs.
        """
        ...

    def time_files(self, paths: Sequence[Path], inputs: tuple[Any, ...], /, *, rounds: int) -> np.ndarray:
        """float64 ``[rounds, files]``: the files run in turn."""
        ...
