"""INT8 on trained networks: everything, what the tasks allow, and NNCF's accuracy control, against float.

``python -m benchmarks.int8`` takes networks of :mod:`benchmarks.no_training` and trains those that are
missing. It writes each in INT8 in several ways, evaluates every file on the reported images, times all files
of a network in turn, and writes ``benchmarks/results/int8.json`` and ``docs/results/int8.md``. All methods
get the same images; only NNCF (``pip install nncf``) also gets their labels. If it is not installed, the page
states this. An interrupted run resumes after the networks that it has written. Delete the file to
measure them again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import Batch, DataError, Loader
from benchmarks.harness import options as common
from benchmarks.harness.cell import digest
from benchmarks.harness.files import CACHE, PAGES, RESULTS, write_json, write_text
from benchmarks.harness.machine import in_words, machine
from benchmarks.no_training.networks import NETWORKS, calibration, labeled, problem, trained
from benchmarks.tables.cells import Figures
from benchmarks.tables.problems import Figure
from disparse_structured.export import export_onnx, measure_latency
from disparse_structured.export.session import open_session, run_session
from disparse_structured.lab.datasets import evaluate
from disparse_structured.pipeline import quantize

ALL, NNCF = "all INT8", "NNCF accuracy control"
FLOAT = "float"
DROP = 0.01
"""The relative loss of the worst task that NNCF may cause."""


class OnnxNetwork(nn.Module):
    """An ONNX file, or its content, as a network of several tasks."""

    def __init__(self, file: Path | bytes) -> None:
        super().__init__()
        self.session = open_session(file, threads=1)
        self.names = [output.name for output in self.session.get_outputs()]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = run_session(self.session, (images,))
        return {name: torch.from_numpy(each) for name, each in zip(self.names, outputs, strict=True)}


def losses(figures: Sequence[Figure], before: Figures, after: Figures) -> dict[str, float]:
    """By task, the relative change of its figure; above 0 it became worse."""
    found = {}
    for each in figures:
        old, new = before[each.task][each.metric], after[each.task][each.metric]
        found[each.task] = (old - new if each.higher_is_better else new - old) / old
    return found


def ours(tolerance: float) -> str:
    """The name of our files."""
    return f"ours, {100 * tolerance:g} %"


def compare(
    model: nn.Module,
    images: Tensor,
    batches: Sequence[Batch],
    measure: Callable[[nn.Module, Sequence[Batch] | None], Figures],
    figures: Sequence[Figure],
    tolerances: Sequence[float],
    rounds: int,
) -> dict[str, Any]:
    """The results of each way to quantize ``model``.

    Args:
        model: the float network.
        images: ``[N, 3, H, W]``, to calibrate and compare on.
        batches: the same images with targets, which only NNCF gets.
        measure: the figures of a network, on the given batches or on those that are reported on.
        figures: one for each task.
        tolerances: of ours.
        rounds: timed runs of each file.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {FLOAT: Path(folder, "float.onnx")}
        tasks = {each.task: lambda found, task=each.task: found[task] for each in figures}
        export_onnx(model, images[:2], files[FLOAT], outputs=tasks)
        layers: dict[str, str] = {}
        ways = {ALL: (1e9, 0), **{ours(tolerance): (tolerance, rounds) for tolerance in tolerances}}
        for number, (name, (tolerance, timed)) in enumerate(ways.items()):
            path = Path(folder, f"{number}.onnx")
            facts = quantize(
                files[FLOAT], images, path, tolerance=tolerance, samples=len(images), rounds=timed
            )
            layers[name] = f"{len(facts.quantized)} of {len(facts.layers)}"
            if facts.path is not None:
                files[name] = path
        if importlib.util.find_spec("nncf") is not None:
            files[NNCF] = Path(folder, "nncf.onnx")
            accuracy_control(files[FLOAT], images, batches, measure, figures, files[NNCF])
        before = measure(OnnxNetwork(files[FLOAT]), None)
        latency = measure_latency(files, (images[:1],), rounds=rounds)
        rows = {}
        for fact in latency.models:
            lost = losses(figures, before, measure(OnnxNetwork(files[fact.name]), None))
            rows[fact.name] = {
                "lost": lost,
                "worst": max(lost.values()),
                "bytes": files[fact.name].stat().st_size,
                "layers": layers.get(fact.name, ""),
                "ms": fact.median_ms,
                "quartiles": [fact.lower_quartile_ms, fact.upper_quartile_ms],
                "speedup": fact.paired_speedup,
            }
        return {"figures": before, "files": rows, "without": [name for name in layers if name not in files]}


def accuracy_control(
    source: Path,
    images: Tensor,
    batches: Sequence[Batch],
    measure: Callable[[nn.Module, Sequence[Batch] | None], Figures],
    figures: Sequence[Figure],
    path: Path,
) -> None:
    """NNCF's file: it comes back to float where the worst task loses more than :data:`DROP`."""
    import nncf
    import onnx

    model = onnx.load(source)
    before = measure(OnnxNetwork(source), batches)
    name = model.graph.input[0].name

    def quality(candidate: Any, _: Any) -> tuple[float, None]:
        found = measure(OnnxNetwork(candidate.SerializeToString()), batches)
        return 1 - max(losses(figures, before, found).values()), None

    data = nncf.Dataset([{name: image[None].numpy()} for image in images])
    found = nncf.quantize_with_accuracy_control(
        model,
        data,
        data,
        quality,
        max_drop=DROP,
        drop_type=nncf.DropType.RELATIVE,
        subset_size=len(images),
    )
    onnx.save(found, path)


def page(document: Mapping[str, Any]) -> str:
    """The page of results."""
    lines = [
        "# INT8",
        "",
        "`python -m benchmarks.int8` on trained networks of `benchmarks/no_training` (three or four tasks,",
        "small images): the worst task's relative loss on the reported images (below 0: all improved), the",
        "size of the file, and the speed-up over the float file, one image, one thread, all files of a",
        "network in turn. Our tolerance is how far an output may move, without labels; a layer stays float",
        f"where INT8 costs time. NNCF may lose {100 * DROP:g} % of the worst task's figure on the same",
        "images, with their labels.",
        "",
        "| network | file | layers in INT8 | worst task loses | size | speed-up | ms (quartiles) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network, row in document["networks"].items():
        for name, each in row["files"].items():
            low, high = each["quartiles"]
            cells = [
                network,
                name,
                each["layers"],
                f"{100 * each['worst']:.2f} %",
                f"{each['bytes'] / 1e6:.2f} MB",
                f"{each['speedup']:.2f} ×",
                f"{each['ms']:.2f} ({low:.2f}–{high:.2f})",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| {network} | {name} | 0 | no file | | | |" for name in row["without"]]
    if not document["nncf"]:
        lines += ["", "NNCF was not installed."]
    lines += ["", f"Measured with {in_words(document['machine'])}, {document['images']} images."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    nncf = importlib.util.find_spec("nncf") is not None and importlib.import_module("nncf").__version__
    document = {
        "machine": machine(),
        "images": options.images,
        "nncf": nncf,
        "settings": digest(options.seed, options.images, options.tolerances, options.rounds, nncf),
    }
    rows = known(options.out, document["settings"])
    try:
        for network in NETWORKS:
            if network.name not in options.networks or network.name in rows:
                continue
            data = problem(network)

            def measure(model: nn.Module, batches: Sequence[Batch] | None, data: Any = data) -> Figures:
                return evaluate(model, batches or Loader(data.check, 64), data.specs)

            rows[network.name] = compare(
                trained(network, options.seed, options.cache),
                calibration(network, options.images, options.seed),
                labeled(network, options.images, options.seed),
                measure,
                data.figures,
                options.tolerances,
                options.rounds,
            )
            write_json(options.out, {**document, "networks": rows})
            print(f"{network.name}: done", file=sys.stderr, flush=True)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    write_text(options.page, page({**document, "networks": rows}))
    print(page({**document, "networks": rows}))
    return 0


def known(path: Path, settings: str) -> dict[str, Any]:
    """The rows of networks that an earlier run with the same ``settings`` has written."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(found["networks"]) if found.get("settings") == settings else {}


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("int8", __doc__)
    names = [network.name for network in NETWORKS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of training and images (%(default)s)")
    parser.add_argument("--images", type=common.count, default=64, help="%(default)s")
    parser.add_argument("--tolerances", nargs="+", type=common.positive, default=[0.01, 0.05])
    parser.add_argument("--rounds", type=common.count, default=60, help="timed runs (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained networks (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.json", help="%(default)s")
    parser.add_argument("--page", type=Path, default=PAGES / "int8.md", help="%(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
