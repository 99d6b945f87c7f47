"""ONNX Runtime as a :class:`~disparse_structured.latency.runtime.Runtime`."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from disparse_structured.errors import require
from disparse_structured.latency.operations import WEIGHTED
from disparse_structured.latency.runtime import Dissection, Part
from disparse_structured.latency.setting import (
    QUIET,
    WARM,
    check_setting,
    in_own_thread,
    inputs_of,
    timed_in_turn,
)
from disparse_structured.report.machine import processor, processor_digest

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_SECONDS, _FEWEST, _MOST = 0.5, 10, 40
"""How long, and how often, the parts of one model are timed."""

_BLOCKED = "_nchwc"
"""What ONNX Runtime adds to the name of an output when it moves its operation to a blocked layout."""


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime on this machine.

    Operators run one after the other, denormal numbers count as zero, and idle threads do not spin.

    >>> OnnxRuntime(threads=2)
    OnnxRuntime(threads=2, batch=1, size=None, providers=('CPUExecutionProvider',))

    Args:
        threads: threads within an operator.
        batch: examples in a batch.
        size: the dimensions of the inputs from the third on, such as ``(224, 224)``; by default those of the
            example inputs.
        providers: execution providers, as ONNX Runtime names them.

    Raises:
        OptionError: a number is below 1.
        MissingExtraError: ONNX Runtime is not installed.
    """

    threads: int = 1
    batch: int = 1
    size: tuple[int, ...] | None = None
    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    def __post_init__(self) -> None:
        check_setting(self.threads, self.batch, self.size)
        require("onnx", "onnx", "onnxscript", "onnxruntime")

    @property
    def facts(self) -> Mapping[str, str]:
        """Version, processor, threads, providers and the kind of numbers."""
        import onnxruntime

        return {
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "processor": f"{processor()} ({processor_digest()})",
            "threads": str(self.threads),
            "providers": ", ".join(self.providers),
            "dtype": "float32",
        }

    def inputs(self, example_inputs: tuple[Any, ...], dynamic: str, /) -> tuple[torch.Tensor, ...]:
        """See :func:`~disparse_structured.latency.setting.inputs_of`."""
        return inputs_of(example_inputs, dynamic, batch=self.batch, size=self.size)

    @in_own_thread
    def dissect(self, path: Path, inputs: tuple[torch.Tensor, ...], /) -> Dissection:
        """The nodes that run, with the time that each takes in the whole network."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            fused, final = Path(folder, "fused.onnx"), Path(folder, "final.onnx")
            self._open(path, "ORT_ENABLE_EXTENDED", save=fused)
            operations = onnx.load(fused)
            for number, node in enumerate(operations.graph.node):
                node.name = f"node{number}"
            onnx.save(operations, fused)
            shapes = {event.name: event.shape for event in self._profile(fused, inputs, 1, "ORT_DISABLE_ALL")}
            events = self._profile(fused, inputs, None, "ORT_ENABLE_ALL", save=final)
            graph = onnx.load(final, load_external_data=False).graph
        times = _times(events)
        read = {event.name: event for event in events}
        weights = {tensor.name: tensor for tensor in operations.graph.initializer}
        own = {node.name: node for node in operations.graph.node}
        own |= {f"{node.output[0]}{_BLOCKED}": node for node in operations.graph.node}
        made: dict[str, int] = {}
        parts = []
        for number, node in enumerate(graph.node):
            event = read.get(node.name)
            sources = tuple(
                (made[name], event.elements[place] if event and place < len(event.elements) else 0)
                for place, name in enumerate(node.input)
                if name in made
            )
            made |= {name: number for name in node.output if name}
            operation = own.get(node.name)
            weight = _weight_of(operation, weights)
            parts.append(
                Part(
                    node.name,
                    times.get(node.name, 0.0),
                    sources,
                    operation if weight is not None else None,
                    None if weight is None else onnx.numpy_helper.to_array(weight),
                    "" if weight is None else weight.name,
                    shapes.get(operation.name, ()) if operation is not None else (),
                )
            )
        opsets = {each.domain: each.version for each in operations.opset_import}
        return Dissection(tuple(parts), opsets)

    @in_own_thread
    def time_nodes(self, model: onnx.ModelProto, /) -> Mapping[str, float]:
        """See :meth:`~disparse_structured.latency.runtime.Runtime.time_nodes`."""
        random = np.random.default_rng(0)
        shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
        inputs = [torch.from_numpy(random.standard_normal(shape, np.float32)) for shape in shapes]
        times = _times(self._profile(model.SerializeToString(), inputs, None, "ORT_ENABLE_ALL"))
        return {name.removesuffix(_BLOCKED): value for name, value in times.items()}

    @in_own_thread
    def time_files(
        self, paths: Sequence[Path], inputs: tuple[torch.Tensor, ...], /, *, rounds: int
    ) -> np.ndarray:
        """See :meth:`~disparse_structured.latency.runtime.Runtime.time_files`.

        The clock is that of :func:`~disparse_structured.latency.setting.timed_in_turn`.
        """
        from disparse_structured.export.session import feed_of, run_session

        sessions = [self._open(path) for path in paths]
        for session in sessions:
            run_session(session, inputs)
        runs = [partial(session.run, None, feed_of(session, inputs)) for session in sessions]
        return timed_in_turn(runs, rounds=rounds, threads=self.threads)

    def _open(
        self,
        model: Path | bytes,
        level: str = "ORT_ENABLE_ALL",
        save: Path | None = None,
        profile: Path | None = None,
    ) -> onnxruntime.InferenceSession:
        import onnxruntime

        from disparse_structured.export.session import open_session

        def configure(options: onnxruntime.SessionOptions) -> None:
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
            if save is not None:
                options.optimized_model_filepath = str(save)
            if profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = str(profile)

        return open_session(model, threads=self.threads, providers=self.providers, configure=configure)

    def _profile(
        self,
        model: Path | bytes,
        inputs: Sequence[torch.Tensor],
        runs: int | None,
        level: str,
        save: Path | None = None,
    ) -> list[_Event]:
        """What ONNX Runtime says about every node of every run but the first ones, which warm up.

        By default as many runs as fit into :data:`_SECONDS`.
        """
        from disparse_structured.export.session import feed_of

        with tempfile.TemporaryDirectory() as folder:
            session = self._open(model, level, save, Path(folder, "profile"))
            feed = feed_of(session, inputs)
            start = time.perf_counter()
            for _ in range(WARM if runs is None else 0):
                session.run(None, feed)
            if runs is None:
                each = (time.perf_counter() - start) / WARM
                runs, warm = int(np.clip(_SECONDS / each, _FEWEST, _MOST)), WARM
            else:
                warm = 0
            for _ in range(runs):
                session.run(None, feed)
            text = Path(session.end_profiling()).read_text(encoding="utf-8")
        return _events(json.loads(text), warm)


@dataclass(frozen=True)
class _Event:
    """One run of one node: the shape of its first input, and the number of floats in each input."""

    name: str
    ms: float
    shape: tuple[int, ...]
    elements: tuple[int, ...]


def _events(profile: Sequence[Mapping[str, Any]], warm: int) -> list[_Event]:
    seen: dict[str, int] = defaultdict(int)
    found = []
    for each in profile:
        if each.get("cat") != "Node" or not each["name"].endswith("_kernel_time"):
            continue
        name = each["name"].removesuffix("_kernel_time")
        seen[name] += 1
        if seen[name] > warm:
            shapes = each["args"].get("input_type_shape", [])
            sizes = tuple(int(np.prod(shape.get("float", 0))) for shape in shapes)
            first = next((tuple(shape["float"]) for shape in shapes if "float" in shape), ())
            found.append(_Event(name, each["dur"] / 1e3, first, sizes))
    return found


def _times(events: Sequence[_Event]) -> dict[str, float]:
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_name[event.name].append(event.ms)
    return {name: float(np.quantile(times, QUIET)) for name, times in by_name.items()}


def _weight_of(
    node: onnx.NodeProto | None, weights: Mapping[str, onnx.TensorProto]
) -> onnx.TensorProto | None:
    if node is None or node.op_type not in WEIGHTED or len(node.input) < 2:
        return None
    return weights.get(node.input[1])
