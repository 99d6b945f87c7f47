"""The whole flow on rendered scenes: train, prune, verify, fine-tune, export, time and draw.

    >>> from disparse_structured.lab import demo  # doctest: +SKIP
    >>> print(demo.run("demo-out"))  # doctest: +SKIP

:mod:`disparse_structured.lab.demo.flow` is meant to be read: your own program would do the same.
"""

from disparse_structured.lab.demo.flow import FULL, QUICK, Settings, evaluate, network, run
from disparse_structured.lab.demo.result import DemoResult, TaskOutcome

__all__ = ["FULL", "QUICK", "DemoResult", "Settings", "TaskOutcome", "evaluate", "network", "run"]
