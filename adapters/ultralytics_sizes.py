"""What the numbers in Ultralytics' modules count: those that export and fusing use, but ``forward`` does not.

Registered in ``pyproject.toml`` as an entry point of ``disparse_structured.sizes``. Ultralytics is not
imported: :func:`numbers` is called with the modules of every model.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from disparse_structured.structure import SizeDeclaration

_HALF = tuple(
    SizeDeclaration("c", f"m.0.{read}", dim)
    for read, dim in (
        ("cv1.conv.weight", 1),
        ("0.cv1.conv.weight", 1),
        ("cv1.0.conv.weight", 0),
        ("attn.qkv.conv.weight", 1),
    )
)
"""The input width of a block's first inner block: one half of what ``cv1`` returns."""

_BLOCKS: dict[str, tuple[SizeDeclaration, ...]] = {
    # The exporters call forward_split, which splits what cv1 returns into halves of c channels.
    "C2f": _HALF,
    "C2fAttn": _HALF,
    "RepNCSPELAN4": (SizeDeclaration("c", "cv2.0.cv1.conv.weight", 1),),
    # Fusing creates an identity with c1 channels.
    "RepConv": (SizeDeclaration("c1", "conv1.conv.weight", 1),),
    # The loss joins an embedding of the classes to the queries, which therefore keep their width.
    "RTDETRDecoder": (SizeDeclaration(None, "enc_output.1.weight", 0),),
}


def numbers(module: nn.Module) -> Iterator[SizeDeclaration]:
    """Yield what the numbers of an Ultralytics module count, including instances of derived classes."""
    for cls in type(module).__mro__:
        if cls.__module__.partition(".")[0] == "ultralytics":
            yield from _BLOCKS.get(cls.__name__, ())
