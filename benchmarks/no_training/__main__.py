"""Pruning without training: stock Torch-Pruning, folding, GRAIL and ours on six trained networks.

Everything in two hours on two cores (``--jobs 2``), trained networks not counted; ``--quick`` in four
minutes: two networks, one seed, one share of the MACs, few methods, written to benchmarks/out. What is
finished stays: whoever stops the run and calls it again goes on where it was. Rows of other settings are
left out and run again; after a change of code that no setting tells of, use ``--again``. ``--only views``
draws tables and plots from the rows that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.data import DataError
from benchmarks.no_training import call, figures, views
from benchmarks.no_training.bench import INPUTS
from benchmarks.no_training.cells import BY_NAME, Cell, Lab
from benchmarks.no_training.goals import EPOCHS, OURS
from benchmarks.no_training.methods import FEW, FRACTIONS, METHODS
from benchmarks.no_training.networks import CACHE
from benchmarks.no_training.results import Results, delta_t, mean_deviation
from benchmarks.no_training.runner import work
from benchmarks.options import count
from benchmarks.rows import RowError

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE.parent / "docs" / "results"
ROWS = HERE / "out" / "no_training"
PARTS = ("tables", "ablation", "inputs", "finetune", "call", "views")
ONE_SEED = ("ablation", "inputs")
"""Parts that ask every network, but only its first seed, unless a number of seeds is given."""

QUICK_NETWORKS = ("nyuv2/resnet", "cards/resnet")
QUICK_METHODS = ("magnitude-uniform", "hessian-global+bn", "grail-magnitude+bn", "folding+bn", OURS)
QUICK_MACS = (0.5,)

_TRAINED_STOCK = "hessian-global+bn"
"""Trained on beside ours where no rows say yet which stock variant is best."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    lab = Lab(options.rows, options.cache)
    out = options.out or (HERE / "out" if options.quick else RESULTS)
    try:
        for part in PARTS[:-1]:
            if options.only in (None, part) and not (options.quick and part != "tables"):
                _run(part, lab, options)
        written = write(lab, out)
    except (DataError, RowError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; call it again to go on", file=sys.stderr)
        return 130
    print(f"written to {written}")
    return 0


def cells(part: str, lab: Lab, options: argparse.Namespace) -> list[Cell]:
    """What one part has to run, network by network, the cells of every seed's network together."""
    names = options.methods or (QUICK_METHODS if options.quick else list(METHODS))
    chosen = [METHODS[name] for name in names]
    found = []
    default = 1 if options.quick or part in ONE_SEED else 3
    for seed in range(options.seeds or default):
        for network in options.networks or (QUICK_NETWORKS if options.quick else list(BY_NAME)):
            shares = options.macs or (QUICK_MACS if options.quick else FRACTIONS)
            if part in ("tables", "ablation"):
                found += [
                    Cell(network, method.name, macs, seed)
                    for macs in shares
                    for method in chosen
                    if (method.family == "ablation") == (part == "ablation") and macs in method.fractions
                ]
            elif part == "inputs":
                counts = [count for count in views.COUNTS if count != INPUTS]
                found += [
                    Cell(network, OURS, macs, seed, inputs=count)
                    for count in counts
                    for macs in options.macs or FEW
                ]
            elif part == "finetune":
                found += [Cell(network, name, 0.3, seed, epochs=EPOCHS) for name in _trained(network, lab)]
    return found


def write(lab: Lab, out: Path) -> Path:
    """Page, plots and JSON from the current rows of ``lab``; the page's path."""
    results = Results(lab.rows())
    plots = []
    for name, figure, label, most, floor in (
        ("no_training-deviation.png", mean_deviation, "mean deviation from dense", False, None),
        ("no_training-delta.png", delta_t, "ΔT, %", True, -40.0),
    ):
        if figures.pareto(out / name, results, figure, label, most=most, floor=floor):
            plots.append(name)
    timed = lab.folder / "call.json"
    spent = json.loads(timed.read_text(encoding="utf-8")) if timed.is_file() else {}
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(views.as_json(results, spent), indent=1, ensure_ascii=False) + "\n"
    (out / "no_training.json").write_text(text, encoding="utf-8")
    page = out / "no_training.md"
    page.write_text(views.document(results, plots, spent), encoding="utf-8")
    return page


def _run(part: str, lab: Lab, options: argparse.Namespace) -> None:
    if part != "call":
        work(cells(part, lab, options), lab, options.jobs, options.again)
        return
    timed = lab.folder / "call.json"
    if timed.is_file() and not options.again:
        return
    torch.set_num_threads(2)
    spent = call.seconds(call.network(), call.images())
    torch.set_num_threads(options.threads)
    timed.parent.mkdir(parents=True, exist_ok=True)
    timed.write_text(json.dumps(spent, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{stage:>18}: {value:6.1f} s" for stage, value in spent.items()))


def _trained(network: str, lab: Lab) -> tuple[str, str]:
    """Ours, and the stock variant that is best there without training."""
    best = Results(lab.rows()).best(delta_t, network, ("stock",), 0.3, most=True)
    return OURS, best or _TRAINED_STOCK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.no_training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a first look, written to benchmarks/out")
    parser.add_argument("--only", choices=PARTS, help="one part (default: all, then views)")
    parser.add_argument("--networks", nargs="+", choices=BY_NAME, help="(all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="(all)")
    parser.add_argument("--macs", nargs="+", type=float, choices=FRACTIONS, help="shares that are left (all)")
    parser.add_argument("--seeds", type=count, help="how many, from 0 (3; of ablation and inputs 1)")
    parser.add_argument("--jobs", type=count, default=1, help="processes of one thread each (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="of torch, with one job (%(default)s)")
    parser.add_argument("--again", action="store_true", help="run also what is finished")
    parser.add_argument("--rows", type=Path, default=ROWS, help="folder of rows (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of page, plots and JSON (docs/results)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained networks (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
