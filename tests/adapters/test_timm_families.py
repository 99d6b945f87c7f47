"""Awkward families of timm: windows, shifts, position tables, class and cross-covariance attention, pools."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.timm_sweep.cells import PARITY, Cell
from benchmarks.timm_sweep.measure import learned
from benchmarks.timm_sweep.subject import Subject
from disparse_structured.export import export_onnx
from disparse_structured.structure import count_parameters
from disparse_structured.verification.verifier import Verification

FAMILIES = {
    "swin_tiny_patch4_window7_224": 112,
    "swinv2_tiny_window16_256": 128,
    "coat_tiny": 64,
    "levit_128s": 112,
    "xcit_nano_12_p8_224": 48,
    "volo_d1_224": 96,
    "davit_tiny": 64,
    "mvitv2_tiny": 96,
    "gcvit_xxtiny": 96,
    "test_nfnet": 64,
    "pvt_v2_b0": 64,
    "vit_tiny_patch16_dinov3_qkvb": 64,
}
"""The smallest model of each, and a side of its images that is quick."""


def verified(verification: Verification | None) -> bool:
    return (
        verification is not None
        and verification.dtype == "torch.float64"
        and max(verification.deviation.values()) <= 1e-9
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_smallest_of_a_family_is_sound_at_half_of_every_width(name: str, tmp_path: Path) -> None:
    subject = Subject(Cell(name, "multitask", FAMILIES[name]))
    network, small = subject.network, subject.operation
    dense = count_parameters(network.model)

    assert verified(small.verification)
    assert count_parameters(small.model) <= dense / 2
    assert learned(small.model, network.inputs, network.tasks) > 0
    facts = export_onnx(
        small.model,
        network.inputs,
        tmp_path / "small.onnx",
        outputs={task.name: task.tensors for task in network.tasks},
        dynamic_batch=False,  # free batches, which take coat alone 20 s, are other tests' matter
        dynamic_size=False,
        tolerance=PARITY,
    )
    assert {fact.task for fact in facts.parity} == {task.name for task in network.tasks}
    graph = subject.graph
    assert verified(graph.verification)
    assert count_parameters(graph.model) <= dense / 2
