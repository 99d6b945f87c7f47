"""A zoo of small awkward multi-task networks: one table, one readable id each.

Every network is seeded, in eval mode, and has random normalization statistics and affine parameters,
so that equality of outputs means something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from disparse_structured.tasks import Task
from tests.support import zoo_channels as channels
from tests.support import zoo_images as images
from tests.support import zoo_plumbing as plumbing
from tests.support import zoo_tokens as tokens

IMAGE = (3, 12, 12)
SEQUENCE = (7, 6)


@dataclass(frozen=True)
class Entry:
    """One animal. ``shapes`` are its inputs without the batch dimension.

    ``statistics`` is True where something is averaged, normalized or maximized over channels, so that a
    removed channel and a channel of zeros are different things.
    """

    id: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    tasks: tuple[Task, ...]
    statistics: bool = False

    def factory(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network, the same at every call, in eval mode; the global seed is left as found."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(self.id.encode()))
            model = self.build()
            randomize_norms(model)
        return model.eval().to(dtype)

    def inputs(self, batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
        """Standard normal example inputs ``[batch, *shape]``."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator).to(dtype) for shape in self.shapes)


def randomize_norms(model: nn.Module) -> None:
    """Give every normalization statistics and an affine map as after training, not one of identity."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)


def named(*names: str) -> tuple[Task, ...]:
    return tuple(Task(name, name) for name in names)


def image(id: str, trunk: Callable[[], nn.Module], width: int = 8, statistics: bool = False) -> Entry:
    def build() -> nn.Module:
        return images.ThreeHeads(trunk(), width)

    return Entry(id, build, (IMAGE,), named("kind", "dense", "edge"), statistics)


def sequence(id: str, trunk: Callable[[], nn.Module], width: int, statistics: bool = False) -> Entry:
    def build() -> nn.Module:
        return tokens.TwoTokenHeads(trunk(), width)

    return Entry(id, build, (SEQUENCE,), named("pooled", "dense"), statistics)


def vector(id: str, trunk: Callable[[], nn.Module], width: int, shape: tuple[int, ...] = (6,)) -> Entry:
    def build() -> nn.Module:
        return tokens.TwoVectorHeads(trunk(), width)

    return Entry(id, build, (shape,), (Task("left", 0), Task("right", 1)))


ZOO: tuple[Entry, ...] = (
    # convolutions
    image("plain", images.plain),
    image("dilated-strided", images.dilated),
    image("depthwise-separable", images.depthwise_separable, 12),
    image("depthwise-multiplier-2", images.depthwise_multiplier),
    image("grouped", images.grouped),
    image("grouped-chain-2-3", images.grouped_chain),
    image("transposed", images.transposed),
    image("transposed-grouped", images.transposed_grouped),
    image("weight-from-weight", channels.StandardizedWeight, statistics=True),
    vector("conv1d", tokens.temporal, 8, (4, 9)),
    # normalization, activation, scale
    image("batchnorm-no-affine", lambda: images.normed(nn.BatchNorm2d(12, affine=False))),
    image("instancenorm", lambda: images.normed(nn.InstanceNorm2d(12))),
    image("instancenorm-affine", lambda: images.normed(nn.InstanceNorm2d(12, affine=True))),
    image("instancenorm-tracked", lambda: images.normed(nn.InstanceNorm2d(12, track_running_stats=True))),
    image("groupnorm", lambda: images.normed(nn.GroupNorm(3, 12)), statistics=True),
    image("groupnorm-no-affine", lambda: images.normed(nn.GroupNorm(3, 12, affine=False)), statistics=True),
    image("groupnorm-one-group", lambda: images.normed(nn.GroupNorm(1, 12)), statistics=True),
    image("groupnorm-each-channel", lambda: images.normed(nn.GroupNorm(12, 12))),
    image("layernorm-space", lambda: images.normed(nn.LayerNorm((12, 12, 12))), statistics=True),
    image("convnext-block", channels.ChannelLayerNorm, statistics=True),
    image("prelu-each-channel", lambda: images.prelu(12)),
    image("prelu-single", lambda: images.prelu(1)),
    image("layerscale", channels.LayerScale),
    image("channel-buffer", channels.ChannelBuffer),
    # topology
    image("residual", images.Residual, 12),
    image("called-twice", images.CalledTwice),
    image("tied-convolutions", images.TiedConvolutions),
    image("parameter-twice", channels.ParameterTwice),
    image("concat-input", images.ConcatInput),
    image("concat-pooled-input", images.ConcatPooledInput),
    image("dense-concat", images.DenseConcat),
    image("squeeze-excite", channels.SqueezeExcite),
    image("expand-gate", channels.ExpandGate),
    image("channel-shuffle", channels.ChannelShuffle),
    image("chunk-gate", channels.ChunkGate),
    image("glu", channels.FunctionalGate),
    image("unequal-split", channels.UnequalSplit),
    image("uneven-chunks", channels.UnevenChunks),
    image("channel-slice", channels.ChannelSlice),
    image("unbind-stack", channels.UnbindStack),
    image("pad-roll", channels.PadRoll),
    image("channel-pad-shortcut", channels.ChannelPadShortcut, 12),
    image("channel-roll", channels.ChannelRoll),
    image("resize", channels.Resize),
    image("channel-mean-gate", channels.ChannelMean, statistics=True),
    image("no-rule-cumsum", channels.CumulativeSum),
    image("no-rule", channels.NoRule),
    Entry("two-batchnorms", channels.TwoBatchNorms, (IMAGE,), named("left", "right")),
    Entry("avgpool-flatten", lambda: plumbing.Flattened(nn.AvgPool2d(2)), (IMAGE,), named("kind", "pose")),
    Entry("maxpool-flatten", lambda: plumbing.Flattened(nn.MaxPool2d(2)), (IMAGE,), named("kind", "pose")),
    Entry(
        "adaptivepool-flatten",
        lambda: plumbing.Flattened(nn.AdaptiveAvgPool2d(3)),
        (IMAGE,),
        named("kind", "pose"),
    ),
    # tokens and vectors
    Entry("tiny-vit", tokens.TinyViT, (IMAGE,), named("kind", "dense"), statistics=True),
    sequence("separate-qkv", lambda: nn.Sequential(nn.Linear(6, 12), tokens.SeparateAttention()), 12),
    sequence("fused-qkv", lambda: nn.Sequential(nn.Linear(6, 12), tokens.FusedAttention(12, 4, 3)), 12),
    sequence("heads-bound-to-width", tokens.WidthBoundAttention, 16, statistics=True),
    sequence("position-bias-heads", tokens.BiasedAttention, 10),
    sequence("bmm-attention", tokens.BatchedMatmul, 12),
    sequence("multihead-attention", tokens.LibraryAttention, 12),
    sequence("token-mean", tokens.TokenMean, 10),
    sequence("token-mixer", tokens.TokenMixer, 12),
    sequence("rms-gated-mlp", tokens.GatedMLP, 12, statistics=True),
    vector("mlp", tokens.mlp, 8),
    vector("tied-linears", tokens.TiedLinears, 10),
    vector("tied-transpose", tokens.TiedTranspose, 10),
    # tasks, inputs, outputs
    Entry("tuple-output", plumbing.TupleOutput, (IMAGE,), (Task("kind", 0), Task("dense", 1))),
    Entry("named-tuple-output", plumbing.NamedTupleOutput, (IMAGE,), named("kind", "dense")),
    Entry(
        "object-output",
        plumbing.ObjectOutput,
        (IMAGE,),
        (Task("kind", "scene.kind"), Task("dense", ("scene", "dense")), Task("edge", "edge")),
    ),
    Entry(
        "nested-output", plumbing.NestedOutput, (IMAGE,), (Task("kind", "scene.kind"), Task("maps", "maps"))
    ),
    Entry(
        "callable-selector",
        plumbing.TupleOutput,
        (IMAGE,),
        (Task("kind", lambda output: output[0]), Task("corner", lambda output: output[1][:, :1])),
    ),
    Entry("two-inputs", plumbing.TwoInputs, (IMAGE, (4,)), named("kind", "dense")),
    Entry("private-branches", plumbing.PrivateBranches, (IMAGE,), named("left", "right")),
    Entry("partial-reach", plumbing.PartialReach, (IMAGE,), named("early", "middle", "late")),
    Entry("chained-tasks", plumbing.ChainedTasks, (IMAGE,), named("coarse", "fine")),
    Entry("untasked-head", plumbing.PrivateBranches, (IMAGE,), named("left")),
    Entry("dead-branch", plumbing.DeadBranch, (IMAGE,), named("kind", "dense")),
    Entry("frozen-parameters", plumbing.frozen_parameters, (IMAGE,), (Task("kind", 0), Task("dense", 1))),
    Entry("frozen-branch", plumbing.frozen_branch, (IMAGE,), named("left", "right")),
)

ids = tuple(entry.id for entry in ZOO)
BY_ID = {entry.id: entry for entry in ZOO}
