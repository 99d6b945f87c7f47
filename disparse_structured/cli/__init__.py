"""The ``disparse`` command: thin over :mod:`disparse_structured.pipeline`."""

from disparse_structured.cli.command import main

__all__ = ["main"]
