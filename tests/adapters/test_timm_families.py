"""Awkward families of timm: windows, shifts, position tables, class and cross-covariance attention, pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from timm.models import build_model_with_cfg, gcvit, generate_default_cfgs, mvitv2, register_model, volo
from torch import nn

from benchmarks.timm_sweep.cells import PARITY, Cell
from benchmarks.timm_sweep.measure import learned
from benchmarks.timm_sweep.subject import Subject
from disparse_structured.export import export_onnx
from disparse_structured.structure import count_parameters
from disparse_structured.verification.verifier import Verification


@dataclass(frozen=True)
class Family:
    """The smallest model of a family, made shallow by ``options``, on images whose side is quick."""

    model: str
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)


SIZED = {"input_size": (3, 224, 224), "fixed_input_size": True}
default_cfgs = generate_default_cfgs(
    {"shallow_volo": SIZED, "shallow_mvitv2": SIZED, "shallow_gcvit": SIZED},
)


@register_model
def shallow_volo(pretrained: bool = False, **options: Any) -> nn.Module:
    """VOLO-D1, whose entry point does not let its depth be chosen."""
    sizes = {"layers": (2, 2), "embed_dims": (48, 96), "num_heads": (6, 12)}
    return volo._create_volo("volo_d1_224", pretrained, post_layers=("ca",), **sizes, **options)


@register_model
def shallow_mvitv2(pretrained: bool = False, **options: Any) -> nn.Module:
    """MViTv2-T, whose entry point does not let its depth be chosen."""
    return build_model_with_cfg(
        mvitv2.MultiScaleVit,
        "mvitv2_tiny",
        pretrained,
        model_cfg=mvitv2.MultiScaleVitCfg(depths=(1, 2), embed_dim=48, stride_q=((1, 1), (2, 2))),
        feature_cfg={"out_indices": 2, "feature_cls": "getter"},
        **options,
    )


@register_model
def shallow_gcvit(pretrained: bool = False, **options: Any) -> nn.Module:
    """GCViT-XXT, whose entry point does not let its depth be chosen; every second block is global."""
    sizes = {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32, "window_ratio": (32, 8)}
    return gcvit._create_gcvit("gcvit_xxtiny", pretrained, **sizes, **options)


SWIN = {"depths": (2, 1), "embed_dim": 48, "num_heads": (3, 6)}
FAMILIES = [
    Family("swin_tiny_patch4_window7_224", 112, SWIN),
    Family("swinv2_tiny_window16_256", 128, SWIN),
    Family("coat_tiny", 64, {"serial_depths": (1, 1, 1, 1), "parallel_depth": 1}),
    Family(
        "levit_128s",
        112,
        {"embed_dim": (64, 128), "num_heads": (4, 6), "depth": (2, 1), "out_indices": (0, 1)},
    ),
    Family("xcit_nano_12_p8_224", 48, {"depth": 2, "cls_attn_layers": 1, "out_indices": 1}),
    Family("shallow_volo", 96, {"out_indices": 2}),
    Family(
        "davit_tiny",
        64,
        {"depths": (1, 1), "embed_dims": (48, 96), "num_heads": (3, 6), "out_indices": (0, 1)},
    ),
    Family("shallow_mvitv2", 96, {"out_indices": 2}),
    Family("shallow_gcvit", 96, {"out_indices": (0, 1)}),
    Family("test_nfnet", 64),
    Family(
        "pvt_v2_b0",
        64,
        {
            "depths": (2, 1),
            "embed_dims": (32, 64),
            "num_heads": (1, 2),
            "sr_ratios": (4, 1),
            "mlp_ratios": (8, 4),
            "out_indices": (0, 1),
        },
    ),
    Family("vit_tiny_patch16_dinov3_qkvb", 64, {"depth": 2, "out_indices": 1}),
]


def verified(verification: Verification | None) -> bool:
    return (
        verification is not None
        and verification.dtype == "torch.float64"
        and max(verification.deviation.values()) <= 1e-9
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model)
def test_the_smallest_of_a_family_is_sound_at_half_of_every_width(family: Family, tmp_path: Path) -> None:
    subject = Subject(Cell(family.model, "multitask", family.size), **family.options)
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
