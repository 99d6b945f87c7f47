"""Processes that are forked from one that has imported the packages already, which takes longest."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

together = pytest.mark.xdist_group("forked processes")
"""For the tests that start processes: one process forks all the others."""

IMPORTED = [
    "disparse_structured.cli.train",
    "disparse_structured.surgery.module",
    "lightning_fabric",
    "scipy.optimize",
    "timm",
    "torch._dynamo",
    "torch.distributed.run",
    "torch.export._trace",
    "torch_pruning",
]
"""What a command imports, some of it only once it needs it."""


def started(
    *calls: Callable[[], object],
    environments: Sequence[Mapping[str, str]] | None = None,
    log: Path | None = None,
) -> list[BaseProcess]:
    """Processes that make these calls; what they say goes into ``log``, if there is one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    processes = [
        context.Process(target=_run, args=(call, dict(environment), log))
        for call, environment in zip(calls, environments or [{}] * len(calls), strict=True)
    ]
    for process in processes:
        process.start()
    return processes


def finished(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Their exit codes, once they have ended."""
    for process in processes:
        process.join(timeout=240)
    return [process.exitcode for process in processes]


def in_two(call: Callable[[], object], log: Path | None = None) -> list[int | None]:
    """The exit codes of two processes that make a call together, in the environment of a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return finished(started(call, call, environments=ranks, log=log))


def launched(arguments: Sequence[str], log: Path) -> list[int | None]:
    """The exit code of ``torchrun`` with these arguments, the launcher that the documentation names."""
    return finished(started(partial(_launch, list(arguments)), log=log))


def _launch(arguments: list[str]) -> None:
    from torch.distributed.run import main

    main(arguments)


def _run(call: Callable[[], object], environment: dict[str, str], log: Path | None) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)  # as the tests themselves: other numbers of threads round otherwise
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
    call()
