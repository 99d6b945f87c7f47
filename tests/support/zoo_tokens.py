"""Awkward networks on tokens, sequences and vectors: attention in its variants, 1-D, MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TwoTokenHeads(nn.Module):
    """``trunk`` on tokens ``[B, N, C]``, then a head on their mean and a head a token."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooled = nn.Linear(width, 5)
        self.dense = nn.Sequential(nn.Linear(width, 10), nn.GELU(), nn.Linear(10, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"pooled": self.pooled(x.mean(1)), "dense": self.dense(x)}


class FusedAttention(nn.Module):
    """One qkv projection; the head dimension is a number of the module, the width of the heads inferred."""

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))


class TinyViT(nn.Module):
    """Patches, class token, position table, pre-norm blocks with LayerScale; heads on class and patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 10, 12))
        self.norm1, self.norm2, self.norm = nn.LayerNorm(12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = FusedAttention(12, num_heads=3, head_dim=4)
        self.scale = nn.Parameter(torch.rand(12) + 0.5)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.kind, self.dense = nn.Linear(12, 5), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patches(x)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.scale * self.attention(self.norm1(x))
        x = self.norm(x + self.mlp(self.norm2(x)))
        grid = x[:, 1:].transpose(1, 2).unflatten(2, (height, width))
        return {"kind": self.kind(x[:, 0]), "dense": self.dense(grid)}


class SeparateAttention(nn.Module):
    """Separate q, k, v and an explicit softmax; the scale is a constant of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 4, 4, 0.5
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 16, bias=False), nn.Linear(12, 16)
        self.proj = nn.Linear(16, 12)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        attention = (query * self.scale @ key.transpose(-2, -1)).softmax(-1)
        return x + self.proj((attention @ value).transpose(1, 2).flatten(2))


class WidthBoundAttention(nn.Module):
    """``forward`` takes the head dimension from the residual width: heads and width are bound together."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.embed = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class BiasedAttention(nn.Module):
    """A position table ``[heads, tokens, tokens]`` shrinks with the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 3
        self.embed = nn.Linear(6, 10)
        self.qkv, self.proj = nn.Linear(10, 36), nn.Linear(12, 10)
        self.bias = nn.Parameter(torch.randn(4, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        attention = (query @ key.transpose(-2, -1) * self.head_dim**-0.5 + self.bias).softmax(-1)
        return x + self.proj((attention @ value).transpose(1, 2).flatten(2))


class BatchedMatmul(nn.Module):
    """Single-head attention by ``torch.bmm``; query and key contract over their own free width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 12)
        self.proj = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        attention = torch.bmm(self.q(x), self.k(x).transpose(1, 2)).softmax(-1)
        return self.proj(torch.bmm(attention, self.v(x)))


class LibraryAttention(nn.Module):
    """``nn.MultiheadAttention``: a packed raw weight, and widths asserted in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


class TokenMean(nn.Module):
    """Tokens are centered on their mean, which is then put in front of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(x))
        mean = x.mean(1, keepdim=True)
        return self.out(torch.cat([mean, x - mean], 1))


class TokenMixer(nn.Module):
    """A linear layer over tokens between two transposes, as in MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.mix = nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return x + self.mix(x.transpose(1, 2)).transpose(1, 2)


class GatedMLP(nn.Module):
    """A root-mean-square norm written by hand, then a gated MLP with separate gate and value."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.gain = nn.Parameter(torch.rand(12) + 0.5)
        self.gate, self.value, self.down = nn.Linear(12, 20), nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        return x + self.down(F.silu(self.gate(y)) * self.value(y))


class TwoVectorHeads(nn.Module):
    """``trunk`` on vectors ``[B, F]`` and two linear heads, returned as a tuple."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.left, self.right = nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.left(x), self.right(x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8))


def temporal() -> nn.Module:
    """1-D convolutions over time, pooled to a vector."""
    return nn.Sequential(
        nn.Conv1d(4, 12, 3, padding=1),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Conv1d(12, 12, 3, groups=12),
        nn.Conv1d(12, 8, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


class TiedLinears(nn.Module):
    """Two linear layers own one weight, so the width between them is the width around them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 10)
        self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(F.relu(self.embed(x)))))


class TiedTranspose(nn.Module):
    """Encoder and decoder share a weight, the decoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encode = nn.Linear(6, 10), nn.Linear(10, 12)
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encode(F.relu(self.embed(x))))
        return F.linear(code, self.encode.weight.t(), self.bias)
