"""Runs cells in processes of their own and reports progress; what is finished is not run again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import wait
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

Say = Callable[[str], None]


def aloud(text: str) -> None:
    """Prints a line immediately, also into a file or a pipe."""
    print(text, flush=True)


def processes(jobs: int) -> AbstractContextManager[Executor | None]:
    """A :func:`pool` for several jobs, and None for one."""
    return nullcontext() if jobs == 1 else pool(jobs)


def pool(jobs: int) -> ProcessPoolExecutor:
    """A pool of processes with one torch thread each, which end when this process does."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _prepare)


def run_all(
    executor: Executor | None,
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    done: Callable[[ResultT], None],
) -> None:
    """Calls ``function`` on all items, and ``done`` on each result as soon as it is there.

    Without an executor, everything is done in this process. An exception of either function, or an
    interruption, cancels what has not begun and is raised.
    """
    if executor is None:
        for item in items:
            done(function(item))
        return
    try:
        for future in as_completed([executor.submit(function, item) for item in items]):
            done(future.result())
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise


class Progress:
    """Announces what will be run, and each cell that is finished.

    Args:
        total: how many cells will be run.
        asked: out of how many.
        jobs: how many at a time.
        say: prints a line.
    """

    def __init__(self, total: int, asked: int, jobs: int, say: Say = aloud) -> None:
        self._total, self._done, self._say = total, 0, say
        self._started = time.perf_counter()
        say(f"{total} of {asked} cells to run, {jobs} at a time")

    def finished(self, label: str, seconds: float, outcome: str = "") -> None:
        """One cell took ``seconds`` and gave ``outcome``."""
        self._done += 1
        left = (time.perf_counter() - self._started) / self._done * (self._total - self._done)
        told = f": {outcome}" if outcome else ""
        self._say(f"[{self._done}/{self._total}] {label}{told}  ({seconds:.0f} s, {left / 60:.0f} min left)")


def remaining(cells: Sequence[ItemT], is_done: Callable[[ItemT], bool], again: bool = False) -> list[ItemT]:
    """The cells that are not done, or all of them ``again``; each once, in the same order."""
    return [cell for cell in dict.fromkeys(cells) if again or not is_done(cell)]


def _prepare() -> None:
    """In every process of the pool: one thread, and an end when the parent ends, however it does."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
