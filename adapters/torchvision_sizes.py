"""What ``out_channels`` of torchvision's modules counts. Heads are built for it; ``forward`` never reads it.

Registered in ``pyproject.toml`` as an entry point of ``disparse_structured.sizes``. torchvision is not
imported: :func:`numbers` is called with the modules of every model.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from disparse_structured.structure import SizeDeclaration

_CHANNELS = {4: 1}
"""Where the channels are: of maps ``[B, C, H, W]``."""


def numbers(module: nn.Module) -> Iterator[SizeDeclaration]:
    """Yield what ``out_channels`` counts, of a torchvision module or of the backbone of a detector."""
    if any(cls.__module__.partition(".")[0] == "torchvision" for cls in type(module).__mro__):
        yield SizeDeclaration("out_channels", "forward", _CHANNELS)
    if any(cls.__name__ == "RawDetector" for cls in type(module).__mro__):
        yield SizeDeclaration("backbone.out_channels", "backbone.forward", _CHANNELS)
