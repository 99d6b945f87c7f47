"""Structured pruning of multi-task networks: each task votes, an arbiter decides, the result is proven."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("disparse-structured")
