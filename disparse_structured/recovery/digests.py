"""A checksum of a network."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from disparse_structured.graph.named_tensors import named_tensors


def digest(model: nn.Module) -> str:
    """SHA-256 of the names and values of all parameters and buffers, and of which are frozen.

    >>> digest(nn.Linear(2, 1)) == digest(nn.Linear(2, 1))  # each has its own values
    False
    """
    found = hashlib.sha256()
    for name, tensor in named_tensors(model)[0].items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
