"""Several heads on one backbone of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from disparse_structured.errors import TaskError


@dataclass(frozen=True)
class TokenHead:
    """A linear layer on every token: ``[B, tokens, outputs]``."""

    outputs: int


@dataclass(frozen=True)
class PooledHead:
    """A linear layer on one token, or on the mean of all: ``[B, outputs]``.

    Args:
        outputs: width of the output.
        token: the place of the token that is read, such as 0 for a class token; None for the mean.
    """

    outputs: int
    token: int | None = 0


Head = TokenHead | PooledHead | nn.Module
"""A module is called with the tokens ``[B, tokens, width]``."""


class MultiTask(nn.Module):
    """A backbone of transformers with one head for each task, called with the backbone's keyword inputs.

    The output is a dict from task to what its head makes of the backbone's ``last_hidden_state``,
    ``[B, tokens, width]``.

    Args:
        backbone: a model without a head, such as a ``BertModel`` or a ``ViTModel``.
        heads: task name to :class:`TokenHead`, :class:`PooledHead` or a module of your own.

    Raises:
        TaskError: there is no head, a head is of another kind, or the backbone does not say its width.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, Head]) -> None:
        super().__init__()
        if not isinstance(heads, Mapping) or not heads:
            raise TaskError(f"heads={heads!r} has no head. Pass a dict such as {{'topic': PooledHead(7)}}.")
        width = getattr(getattr(backbone, "config", None), "hidden_size", None)
        if not isinstance(width, int):
            raise TaskError(
                f"{type(backbone).__name__} has no config.hidden_size, so it does not say how wide its "
                "tokens are. Pass a transformer encoder or decoder, or write a module that returns a dict."
            )
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: _built(name, head, width) for name, head in heads.items()})

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """The backbone's inputs by name to ``{task: [B, outputs] or [B, tokens, outputs]}``."""
        tokens = self.backbone(**inputs).last_hidden_state
        return {name: head(tokens) for name, head in self.heads.items()}


class _Pooled(nn.Module):
    def __init__(self, head: PooledHead, width: int) -> None:
        super().__init__()
        self.token = head.token
        self.predict = nn.Linear(width, head.outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.predict(tokens.mean(1) if self.token is None else tokens[:, self.token])
        return output


def _built(name: str, head: Head, width: int) -> nn.Module:
    if isinstance(head, nn.Module):
        return head
    if not isinstance(head, TokenHead | PooledHead) or head.outputs < 1:
        raise TaskError(
            f"the head {name!r} is {head!r}. Pass TokenHead(outputs), PooledHead(outputs) with outputs >= 1, "
            "or a module that is called with tokens [B, tokens, width]."
        )
    return nn.Linear(width, head.outputs) if isinstance(head, TokenHead) else _Pooled(head, width)
