"""The whole flow on rendered scenes: train, let the tasks vote, prune, fine-tune, export, verify, show.

    >>> from disparse_structured import demo
    >>> print(demo.run("demo-out"))  # doctest: +SKIP

:mod:`disparse_structured.lab.demo.flow` is meant to be read: it is what a program of your own would do.
"""

from disparse_structured.lab.demo.flow import FULL, QUICK, Settings, evaluate, network, run
from disparse_structured.lab.demo.result import DemoResult, TaskOutcome

__all__ = ["FULL", "QUICK", "DemoResult", "Settings", "TaskOutcome", "evaluate", "network", "run"]
