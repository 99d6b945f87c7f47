"""The networks: small configurations with random weights, each from a library that may be missing.

Every builder returns a model in eval mode, the arguments of one forward pass by name, and its tasks.
Libraries are imported where they are used. Networks from transformers are built from configurations, so
nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

BATCH = 2


@dataclass(frozen=True)
class Network:
    """A model in eval mode, the arguments of a forward pass, and its tasks as output selectors."""

    model: nn.Module
    inputs: Mapping[str, Any] | tuple[Any, ...]
    tasks: Mapping[str, str | int | tuple[str | int, ...]]


Builder = Callable[[], Network]


def images(side: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.rand(BATCH, channels, side, side, generator=torch.Generator().manual_seed(0))


def ids(length: int = 8, vocabulary: int = 90) -> torch.Tensor:
    return torch.randint(3, vocabulary, (BATCH, length), generator=torch.Generator().manual_seed(0))


# transformers.

_WIDTHS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_TEXT = {"vocab_size": 99, "max_position_embeddings": 64, **_WIDTHS}
_DECODER = {**_TEXT, "use_cache": False}


def transformer(
    name: str, inputs: Callable[[], Mapping[str, Any]], tasks: Mapping[str, Any], config: Mapping[str, Any]
) -> Network:
    """Build the ``transformers`` class ``name`` from its configuration class, filled with ``config``."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**config))
    return Network(model.eval(), inputs(), tasks)


def _text() -> Mapping[str, Any]:
    return {"input_ids": ids(), "attention_mask": torch.ones(BATCH, 8, dtype=torch.long)}


def _tokens() -> Mapping[str, Any]:
    return {"input_ids": ids()}


def _pixels(side: int = 64) -> Mapping[str, Any]:
    return {"pixel_values": images(side)}


def _sequences() -> Mapping[str, Any]:
    return {"input_ids": ids(), "decoder_input_ids": ids(6)}


def _sound(samples: int = 4000) -> Mapping[str, Any]:
    return {"input_values": torch.randn(BATCH, samples, generator=torch.Generator().manual_seed(0))}


_LOGITS = {"logits": "logits"}
_DETECTION = {"logits": "logits", "boxes": "pred_boxes"}
_IMAGE = {**_WIDTHS, "image_size": 64, "patch_size": 16, "num_labels": 7}
_SMALL_STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_labels": 7}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 48}

_ENCODERS = (
    "Albert Bert Camembert ConvBert Deberta DebertaV2 Electra Ernie Esm MPNet MegatronBert MobileBert "
    "Nystromformer RemBert RoCBert RoFormer Roberta RobertaPreLayerNorm SqueezeBert XLMRoberta"
).split()
_DECODERS = (
    "Gemma Gemma2 GPTNeoX Llama Mistral Mixtral Olmo Olmo2 Persimmon Phi Phi3 Qwen2 Qwen2Moe Qwen3 StableLm "
    "Starcoder2"
).split()
_SPECIAL: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 32},
    "SqueezeBert": {"embedding_size": 64},
    "MobileBert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "Esm": {"pad_token_id": 1},
    "Gemma": {"num_key_value_heads": 2, "head_dim": 16},
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 16},
    "Mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "Qwen2Moe": {"num_key_value_heads": 2, **_MOE, "shared_expert_intermediate_size": 48},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    **{name: {"num_key_value_heads": 2} for name in ("Llama", "Mistral", "Qwen2", "Phi3", "Starcoder2")},
    "Phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "RemBert": {"input_embedding_size": 32, "output_embedding_size": 32},
}


def _transformers() -> dict[str, Builder]:
    found: dict[str, Builder] = {}

    def add(name: str, inputs: Any, tasks: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        found[name] = partial(transformer, name, inputs, tasks, config)

    for name in _ENCODERS:
        add(f"{name}ForSequenceClassification", _text, _LOGITS, {**_TEXT, **_SPECIAL.get(name, {})})
    for name in _DECODERS:
        add(f"{name}ForCausalLM", _tokens, _LOGITS, {**_DECODER, **_SPECIAL.get(name, {})})
    small = {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
    add(
        "DistilBertForSequenceClassification",
        _text,
        _LOGITS,
        {
            "vocab_size": 99,
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 96,
            "max_position_embeddings": 64,
        },
    )
    add("GPT2LMHeadModel", _tokens, _LOGITS, small)
    add("GPTJForCausalLM", _tokens, _LOGITS, {**small, "rotary_dim": 8})
    add("CodeGenForCausalLM", _tokens, _LOGITS, {**small, "rotary_dim": 8})
    add(
        "GPTNeoForCausalLM",
        _tokens,
        _LOGITS,
        {
            "vocab_size": 99,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 96,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "use_cache": False,
        },
    )
    add(
        "BloomForCausalLM",
        _tokens,
        _LOGITS,
        {"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False},
    )
    add("OPTForCausalLM", _tokens, _LOGITS, {**_DECODER, "ffn_dim": 96, "word_embed_proj_dim": 64})
    add("FalconForCausalLM", _tokens, _LOGITS, {**_DECODER, "bos_token_id": 1, "eos_token_id": 2})
    add(
        "T5ForConditionalGeneration",
        _sequences,
        _LOGITS,
        {
            "vocab_size": 99,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "use_cache": False,
        },
    )
    sequence = {
        "vocab_size": 99,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "use_cache": False,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    for name in (
        "BartForConditionalGeneration",
        "MBartForConditionalGeneration",
        "PegasusForConditionalGeneration",
    ):
        add(name, _sequences, _LOGITS, sequence)
    add("MarianMTModel", _sequences, _LOGITS, {**sequence, "decoder_vocab_size": 99, "pad_token_id": 98})
    add(
        "WhisperForConditionalGeneration",
        lambda: {
            "input_features": torch.randn(BATCH, 8, 40, generator=torch.Generator().manual_seed(0)),
            "decoder_input_ids": ids(6),
        },
        _LOGITS,
        {**sequence, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
    )

    for name in ("ViT", "DeiT", "Beit", "Data2VecVision", "Dinov2", "ViTMSN"):
        add(f"{name}ForImageClassification", _pixels, _LOGITS, _IMAGE)
    add(
        "YolosForObjectDetection",
        _pixels,
        _DETECTION,
        {**_IMAGE, "image_size": [64, 64], "num_detection_tokens": 6},
    )
    swin = {
        "image_size": 64,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        "num_labels": 7,
    }
    add("SwinForImageClassification", _pixels, _LOGITS, swin)
    add("Swinv2ForImageClassification", _pixels, _LOGITS, swin)
    for name in ("ConvNext", "ConvNextV2", "RegNet", "ResNet"):
        extra = {"embedding_size": 16} if name in ("RegNet", "ResNet") else {}
        extra |= {"groups_width": 8} if name == "RegNet" else {}
        add(f"{name}ForImageClassification", _pixels, _LOGITS, {**_SMALL_STAGES, **extra})
    add(
        "SegformerForSemanticSegmentation",
        _pixels,
        _LOGITS,
        {
            "hidden_sizes": [16, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
            "num_labels": 5,
        },
    )
    add("MobileViTForImageClassification", _pixels, _LOGITS, {"image_size": 64, "num_labels": 7})
    add("MobileViTV2ForImageClassification", _pixels, _LOGITS, {"image_size": 64, "num_labels": 7})
    add(
        "MobileNetV1ForImageClassification",
        _pixels,
        _LOGITS,
        {"image_size": 64, "num_labels": 7, "depth_multiplier": 0.5},
    )
    add(
        "MobileNetV2ForImageClassification",
        _pixels,
        _LOGITS,
        {"image_size": 64, "num_labels": 7, "depth_multiplier": 0.5},
    )
    add("PoolFormerForImageClassification", _pixels, _LOGITS, {**_SMALL_STAGES})
    add(
        "LevitForImageClassification",
        lambda: _pixels(64),
        _LOGITS,
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48],
            "depths": [1, 1, 1],
            "num_attention_heads": [2, 2, 3],
            "key_dim": [8, 8, 8],
            "num_labels": 7,
        },
    )
    add(
        "CvtForImageClassification",
        _pixels,
        _LOGITS,
        {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 1, 1], "num_labels": 7},
    )
    add(
        "PvtV2ForImageClassification",
        _pixels,
        _LOGITS,
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 32, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "num_labels": 7,
        },
    )
    add(
        "SwiftFormerForImageClassification",
        _pixels,
        _LOGITS,
        {"embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_labels": 7},
    )
    add(
        "HieraForImageClassification",
        _pixels,
        _LOGITS,
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
            "num_labels": 7,
        },
    )
    add(
        "GLPNForDepthEstimation",
        _pixels,
        {"depth": "predicted_depth"},
        {
            "hidden_sizes": [16, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
        },
    )
    add(
        "DPTForDepthEstimation",
        _pixels,
        {"depth": "predicted_depth"},
        {
            **_WIDTHS,
            "num_hidden_layers": 4,
            "image_size": 64,
            "patch_size": 16,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 16, 16],
            "fusion_hidden_size": 16,
        },
    )
    add(
        "VideoMAEForVideoClassification",
        lambda: {"pixel_values": torch.rand(BATCH, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
        _LOGITS,
        {**_WIDTHS, "image_size": 32, "patch_size": 16, "num_frames": 4, "num_labels": 5},
    )

    add(
        "TimesformerForVideoClassification",
        lambda: {"pixel_values": torch.rand(BATCH, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
        _LOGITS,
        {**_WIDTHS, "image_size": 32, "patch_size": 16, "num_frames": 4, "num_labels": 5},
    )

    speech = {
        **_WIDTHS,
        "vocab_size": 32,
        "conv_dim": (32, 32, 32),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    for name in ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "SEW"):
        extra = {"squeeze_factor": 2} if name == "SEW" else {}
        add(f"{name}ForCTC", _sound, _LOGITS, {**speech, **extra})
    add(
        "ASTForAudioClassification",
        lambda: {"input_values": torch.randn(BATCH, 64, 32, generator=torch.Generator().manual_seed(0))},
        _LOGITS,
        {**_WIDTHS, "max_length": 64, "num_mel_bins": 32, "num_labels": 7},
    )
    towers = {
        "text_config": {**_TEXT, "projection_dim": 32},
        "projection_dim": 32,
        "vision_config": {**_WIDTHS, "image_size": 64, "patch_size": 16, "projection_dim": 32},
    }
    pair = {"images": "logits_per_image", "texts": "logits_per_text"}
    add("CLIPModel", lambda: {**_text(), **_pixels()}, pair, towers)
    add("SiglipModel", lambda: {"input_ids": ids(), **_pixels()}, pair, towers)
    return found


# torchvision.


def vision(name: str, side: int = 64, tasks: Mapping[str, Any] | None = None, **options: Any) -> Network:
    """Build a model of ``torchvision.models``, or of one of its modules, such as ``segmentation``."""
    import torchvision

    module, _, kind = name.rpartition(".")
    owner = getattr(torchvision.models, module) if module else torchvision.models
    weights = {} if kind[0].isupper() else {"weights": None}
    model = getattr(owner, kind)(**weights, **options)
    return Network(model.eval(), (images(side),), tasks or {"logits": ()})


def _torchvision() -> dict[str, Builder]:
    dense = {"out": "out"}
    return {
        "resnet18": partial(vision, "resnet18", num_classes=7),
        "googlenet": partial(vision, "googlenet", 96, num_classes=7, aux_logits=True, init_weights=False),
        "inception_v3": partial(
            vision, "inception_v3", 128, num_classes=7, aux_logits=True, init_weights=False
        ),
        "densenet": partial(
            vision, "DenseNet", growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16, num_classes=7
        ),
        "shufflenet_v2_x0_5": partial(vision, "shufflenet_v2_x0_5", num_classes=7),
        "squeezenet1_1": partial(vision, "squeezenet1_1", num_classes=7),
        "mnasnet0_5": partial(vision, "mnasnet0_5", num_classes=7),
        "mobilenet_v2": partial(vision, "mobilenet_v2", num_classes=7, width_mult=0.5),
        "mobilenet_v3_small": partial(vision, "mobilenet_v3_small", num_classes=7),
        "efficientnet_b0": partial(vision, "efficientnet_b0", num_classes=7),
        "regnet_y_400mf": partial(vision, "regnet_y_400mf", num_classes=7),
        "vgg11_bn": partial(vision, "vgg11_bn", num_classes=7),
        "alexnet": partial(vision, "alexnet", num_classes=7),
        "vit": partial(
            vision,
            "VisionTransformer",
            image_size=64,
            patch_size=16,
            num_layers=2,
            num_heads=4,
            hidden_dim=48,
            mlp_dim=96,
            num_classes=7,
        ),
        "swin": partial(
            vision,
            "SwinTransformer",
            patch_size=[4, 4],
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=[4, 4],
            num_classes=7,
        ),
        "swin_v2": partial(_swin_v2),
        "deeplabv3_mobilenet_v3_large": partial(
            vision,
            "segmentation.deeplabv3_mobilenet_v3_large",
            tasks={**dense, "aux": "aux"},
            weights_backbone=None,
            num_classes=5,
            aux_loss=True,
        ),
        "lraspp_mobilenet_v3_large": partial(
            vision,
            "segmentation.lraspp_mobilenet_v3_large",
            tasks=dense,
            weights_backbone=None,
            num_classes=5,
        ),
        "quantization.mobilenet_v2": partial(
            vision, "quantization.mobilenet_v2", quantize=False, num_classes=7
        ),
        "raft_small": partial(_raft),
        "r3d_18": partial(_video, "r3d_18"),
        "mc3_18": partial(_video, "mc3_18"),
    }


def _swin_v2() -> Network:
    from torchvision.models import swin_transformer

    model = swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=[4, 4],
        num_classes=7,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    )
    return Network(model.eval(), (images(),), {"logits": ()})


def _raft() -> Network:
    from torchvision.models.optical_flow import raft_small

    return Network(raft_small(weights=None).eval(), (images(128), images(128).flip(0), 2), {"flow": 1})


def _video(name: str) -> Network:
    import torchvision

    model = getattr(torchvision.models.video, name)(weights=None, num_classes=7)
    clip = torch.rand(BATCH, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    return Network(model.eval(), (clip,), {"logits": ()})


# segmentation-models-pytorch.


def segmenter(kind: str, encoder: str = "resnet18", **options: Any) -> Network:
    """Build a segmenter, with an auxiliary classifier if it takes one."""
    import segmentation_models_pytorch

    model = getattr(segmentation_models_pytorch, kind)(
        encoder, encoder_weights=None, classes=5, aux_params={"classes": 4}, **options
    )
    side = 128 if kind == "PAN" else 64  # it pools the smallest map three times
    return Network(model.eval(), (images(side),), {"masks": 0, "labels": 1})


def _segmenters() -> dict[str, Builder]:
    kinds = (
        "Unet",
        "UnetPlusPlus",
        "MAnet",
        "Linknet",
        "FPN",
        "PSPNet",
        "DeepLabV3",
        "DeepLabV3Plus",
        "PAN",
        "UPerNet",
        "Segformer",
        "DPT",
    )
    found = {f"{kind}": partial(segmenter, kind) for kind in kinds if kind != "DPT"}
    found["Unet mobilenet_v2"] = partial(segmenter, "Unet", "mobilenet_v2")
    found["FPN efficientnet-b0"] = partial(segmenter, "FPN", "efficientnet-b0")
    found["Unet mit_b0"] = partial(segmenter, "Unet", "mit_b0")
    return found


# Ultralytics.


def yolo(name: str, tasks: Mapping[str, Any]) -> Network:
    """Build an Ultralytics network from its configuration file."""
    os.environ["YOLO_OFFLINE"] = "true"
    from ultralytics import YOLO

    model: nn.Module = YOLO(f"{name}.yaml", verbose=False).model
    return Network(model.float().eval().requires_grad_(True), (images(),), tasks)


def _yolos() -> dict[str, Builder]:
    boxes: Mapping[str, Any] = {"boxes": 0}
    names = (
        "yolov5nu",
        "yolov8n",
        "yolov8n-pose",
        "yolov8n-obb",
        "yolov9t",
        "yolov10n",
        "yolo11n",
        "yolo12n",
        "yolo26n",
    )
    found = {name: partial(yolo, name.replace("5nu", "5n"), boxes) for name in names}
    for name in ("yolov8n-seg", "yolo11n-seg"):
        found[name] = partial(yolo, name, {"boxes": (0, 0), "prototypes": (0, 1)})
    found["yolov8n-cls"] = partial(yolo, "yolov8n-cls", {"labels": 0})
    return found


def networks() -> dict[str, Builder]:
    """Return the builders of all networks, by ``library/name``."""
    libraries = {
        "torchvision": _torchvision(),
        "smp": _segmenters(),
        "ultralytics": _yolos(),
        "transformers": _transformers(),
    }
    return {
        f"{library}/{name}": build for library, found in libraries.items() for name, build in found.items()
    }
