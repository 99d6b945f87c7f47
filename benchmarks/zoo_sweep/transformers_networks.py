"""Small networks from transformers, built from configurations, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.timm_sweep.cells import BATCH
from benchmarks.zoo_sweep.network import Builder, Network, ids, images, normal, uniform

Inputs = Mapping[str, Any]
Config = Mapping[str, Any]


def transformer(name: str, inputs: Callable[[], Inputs], tasks: Mapping[str, Any], config: Config) -> Network:
    """Build the class ``name`` from its configuration class, filled with ``config``."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**config))
    return Network(model.eval(), inputs(), tasks)


def transformers_networks() -> dict[str, Builder]:
    """Return the builders by the name of the class."""
    text = _encoders() | _decoders() | _sequence_to_sequence()
    return text | _vision() | _dense_vision() | _sound() | _pairs()


# Inputs.


def _text() -> Inputs:
    return {"input_ids": ids(), "attention_mask": torch.ones(BATCH, 8, dtype=torch.long)}


def _tokens() -> Inputs:
    return {"input_ids": ids()}


def _two_sequences() -> Inputs:
    return {"input_ids": ids(), "decoder_input_ids": ids(6)}


def _spectrum_and_tokens() -> Inputs:
    return {"input_features": normal(8, 40), "decoder_input_ids": ids(6)}


def _pixels() -> Inputs:
    return {"pixel_values": images()}


def _clip() -> Inputs:
    return {"pixel_values": uniform(4, 3, 32, 32)}


def _wave() -> Inputs:
    return {"input_values": normal(4000)}


def _spectrum() -> Inputs:
    return {"input_values": normal(64, 32)}


def _text_and_pixels() -> Inputs:
    return {**_text(), **_pixels()}


def _tokens_and_pixels() -> Inputs:
    return {**_tokens(), **_pixels()}


# Tasks and parts of configurations.

_LOGITS = {"logits": "logits"}
_DEPTH = {"depth": "predicted_depth"}
_WIDTHS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_WORDS = {"vocab_size": 99, "max_position_embeddings": 64}
_TEXT = {**_WORDS, **_WIDTHS}
_SEVEN = {"num_labels": 7}
_PATCHES = {"image_size": 64, "patch_size": 16}
_ONE_BLOCK_A_STAGE = {"depths": [1, 1, 1, 1]}


def _encoders() -> dict[str, Builder]:
    plain = (
        "Bert Camembert ConvBert Deberta DebertaV2 Electra Ernie MPNet MegatronBert Nystromformer RoCBert "
        "RoFormer Roberta RobertaPreLayerNorm XLMRoberta"
    )
    special: dict[str, Config] = {
        **{name: {} for name in plain.split()},
        "Albert": {"embedding_size": 32},
        "Esm": {"pad_token_id": 1},
        "MobileBert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        "RemBert": {"input_embedding_size": 32, "output_embedding_size": 32},
        "SqueezeBert": {"embedding_size": 64},
    }
    distilled = {**_WORDS, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
    configs = {name: {**_TEXT, **extra} for name, extra in special.items()} | {"DistilBert": distilled}
    named = {f"{name}ForSequenceClassification": config for name, config in configs.items()}
    return _each(_text, _LOGITS, named)


def _decoders() -> dict[str, Builder]:
    grouped = {"num_key_value_heads": 2}
    sized = {**grouped, "head_dim": 16}
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    expert_widths = {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 48}
    special: dict[str, Config] = {
        **{name: {} for name in "GPTNeoX Olmo Olmo2 Persimmon Phi".split()},
        **dict.fromkeys("Llama Mistral Qwen2 StableLm Starcoder2".split(), grouped),
        **dict.fromkeys("Gemma Gemma2 Qwen3".split(), sized),
        "Falcon": {"bos_token_id": 1, "eos_token_id": 2},
        "Mixtral": {**grouped, "num_local_experts": 4},
        "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
        "Phi3": {**grouped, "pad_token_id": 0},
        "Qwen2Moe": {**grouped, **experts, **expert_widths},
    }
    shorter = {"vocab_size": 99, "n_layer": 2, "n_head": 4}
    gpt = {**shorter, "n_embd": 64, "n_positions": 64}
    neo = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    configs: dict[str, Config] = {
        **{name: {**_TEXT, **extra} for name, extra in special.items()},
        "Bloom": {**shorter, "hidden_size": 64},
        "CodeGen": {**gpt, "rotary_dim": 8},
        "GPTJ": {**gpt, "rotary_dim": 8},
        "GPTNeo": {**_WORDS, **neo, "hidden_size": 64, "intermediate_size": 96},
    }
    named = {f"{name}ForCausalLM": config for name, config in configs.items()} | {"GPT2LMHeadModel": gpt}
    return _each(_tokens, _LOGITS, {name: {**config, "use_cache": False} for name, config in named.items()})


def _sequence_to_sequence() -> dict[str, Builder]:
    towers = {
        f"{tower}_{field}": size
        for tower in ("encoder", "decoder")
        for field, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 96))
    }
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    both: dict[str, Any] = {**_WORDS, **towers, **special, "d_model": 64, "use_cache": False}
    t5 = {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    whisper = {**both, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20}
    text = {f"{name}ForConditionalGeneration": both for name in ("Bart", "MBart", "Pegasus")} | {
        "MarianMTModel": {**both, "decoder_vocab_size": 99, "pad_token_id": 98},
        "T5ForConditionalGeneration": {**t5, "use_cache": False},
    }
    speech = {"WhisperForConditionalGeneration": whisper}
    return _each(_two_sequences, _LOGITS, text) | _each(_spectrum_and_tokens, _LOGITS, speech)


def _vision() -> dict[str, Builder]:
    image = {**_WIDTHS, **_PATCHES}
    windows = {"patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    stages = {**_ONE_BLOCK_A_STAGE, "hidden_sizes": [16, 24, 32, 48]}
    three = {"hidden_sizes": [16, 32, 48], "depths": [1, 1, 1], "num_attention_heads": [2, 2, 3]}
    pyramid = {"hidden_sizes": [16, 32, 32, 64], "num_attention_heads": [1, 2, 2, 4]}
    configs: dict[str, Config] = {
        **dict.fromkeys(("ViT", "DeiT", "Beit", "Data2VecVision", "Dinov2", "IJepa", "ViTMSN"), image),
        **{name: {**windows, "image_size": 64} for name in ("Swin", "Swinv2")},
        **dict.fromkeys(("ConvNext", "ConvNextV2", "PoolFormer"), stages),
        **{name: {"image_size": 64} for name in ("MobileViT", "MobileViTV2")},
        **{name: {"image_size": 64, "depth_multiplier": 0.5} for name in ("MobileNetV1", "MobileNetV2")},
        "Cvt": {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
        "Hiera": {**_ONE_BLOCK_A_STAGE, "image_size": [64, 64], "embed_dim": 16, "num_heads": [1, 2, 4, 8]},
        "Levit": {**three, "image_size": 64, "key_dim": [8, 8, 8]},
        "PvtV2": {**_ONE_BLOCK_A_STAGE, **pyramid, "image_size": 64},
        "RegNet": {**stages, "embedding_size": 16, "groups_width": 8},
        "ResNet": {**stages, "embedding_size": 16},
        "SwiftFormer": {**_ONE_BLOCK_A_STAGE, "embed_dims": [16, 24, 32, 48]},
    }
    named = {f"{name}ForImageClassification": {**config, **_SEVEN} for name, config in configs.items()}
    clip = {**_WIDTHS, "image_size": 32, "patch_size": 16, "num_frames": 4, "num_labels": 5}
    videos = {f"{name}ForVideoClassification": clip for name in ("VideoMAE", "Timesformer")}
    return _each(_pixels, _LOGITS, named) | _each(_clip, _LOGITS, videos)


def _dense_vision() -> dict[str, Builder]:
    stages = {**_ONE_BLOCK_A_STAGE, "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 2, 2, 4]}
    maps = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
    boxes = {"logits": "logits", "boxes": "pred_boxes"}
    yolos = {**_WIDTHS, **_PATCHES, **_SEVEN, "image_size": [64, 64], "num_detection_tokens": 6}
    segformer = {**stages, "decoder_hidden_size": 32, "num_labels": 5}
    depth: dict[str, Config] = {
        "DPTForDepthEstimation": {**_WIDTHS, **_PATCHES, **maps, "num_hidden_layers": 4},
        "GLPNForDepthEstimation": {**stages, "decoder_hidden_size": 16},
    }
    return (
        _each(_pixels, boxes, {"YolosForObjectDetection": yolos})
        | _each(_pixels, _LOGITS, {"SegformerForSemanticSegmentation": segformer})
        | _each(_pixels, _DEPTH, depth)
    )


def _sound() -> dict[str, Builder]:
    layers = {"conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    speech = {**_WIDTHS, **layers, **positions, "vocab_size": 32, "num_feat_extract_layers": 3}
    configs: dict[str, Config] = dict.fromkeys(("Wav2Vec2", "Hubert", "WavLM", "UniSpeech"), speech)
    configs["SEW"] = {**speech, "squeeze_factor": 2}
    spectrum = {**_WIDTHS, **_SEVEN, "max_length": 64, "num_mel_bins": 32}
    return _each(_wave, _LOGITS, {f"{name}ForCTC": config for name, config in configs.items()}) | _each(
        _spectrum, _LOGITS, {"ASTForAudioClassification": spectrum}
    )


def _pairs() -> dict[str, Builder]:
    towers = {
        "text_config": {**_TEXT, "projection_dim": 32},
        "vision_config": {**_WIDTHS, **_PATCHES, "projection_dim": 32},
        "projection_dim": 32,
    }
    similarities = {"images": "logits_per_image", "texts": "logits_per_text"}
    return _each(_text_and_pixels, similarities, {"CLIPModel": towers}) | _each(
        _tokens_and_pixels, similarities, {"SiglipModel": towers}
    )


def _each(
    inputs: Callable[[], Inputs], tasks: Mapping[str, Any], configs: Mapping[str, Config]
) -> dict[str, Builder]:
    return {name: partial(transformer, name, inputs, tasks, config) for name, config in configs.items()}
