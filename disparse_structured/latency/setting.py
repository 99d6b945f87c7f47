"""What runtimes have in common: threads, batch and size, and a clock for runs in turn."""

from __future__ import annotations

import contextvars
import functools
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import map_batched
from disparse_structured.errors import OptionError

P = ParamSpec("P")
T = TypeVar("T")

WARM = 3
"""Untimed runs before the timed ones."""

QUIET = 0.1
"""The quantile that counts as the time of one operation: other processes only ever add to it."""


def check_setting(threads: int, batch: int, size: tuple[int, ...] | None) -> None:
    """Raises :class:`OptionError` unless all are whole numbers of at least 1."""
    numbers = (threads, batch, *(size or ()))
    if not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise OptionError(
            f"threads={threads}, batch={batch}, size={size}: each must be a whole number of at least 1."
        )


def inputs_of(
    example_inputs: tuple[Any, ...], dynamic: str, *, batch: int, size: tuple[int, ...] | None
) -> tuple[torch.Tensor, ...]:
    """``example_inputs`` with ``batch`` examples of ``size``.

    A file with a fixed batch size is timed with that size. ``dynamic`` is as in
    :class:`~disparse_structured.report.facts.ExportFacts`.

    Raises:
        OptionError: ``size`` or a ``batch`` above 1 was chosen, and the file's is fixed.
    """
    free = dynamic.split("+")
    if batch > 1 and "batch" not in free:
        raise OptionError(f"batch={batch} cannot be timed: the ONNX file has a fixed batch size.")
    if size is not None and "size" not in free:
        raise OptionError(f"size={size} cannot be timed: the ONNX file has a fixed input size.")

    given = resized(example_inputs, batch if "batch" in free else None, size)
    leaves = pytree.tree_leaves(given)
    return tuple(leaf.detach().cpu() for leaf in leaves if isinstance(leaf, torch.Tensor))


def resized(inputs: tuple[Any, ...], batch: int | None, size: tuple[int, ...] | None) -> tuple[Any, ...]:
    """``inputs`` with ``batch`` examples, repeated if they are too few, and of ``size``; None keeps either.

    >>> [tuple(each.shape) for each in resized((torch.rand(2, 3, 8, 8),), 3, (4, 6))]
    [(3, 3, 4, 6)]
    """

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if batch is not None:
            tensor = tensor[torch.arange(batch) % len(tensor)]
        if size is not None and tensor.ndim == 2 + len(size) and tensor.is_floating_point():
            tensor = torch.nn.functional.interpolate(tensor, size)
        return tensor

    return map_batched(one, inputs)


def in_own_thread(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, run in a thread of its own, in which denormal numbers count as zero.

    Runtimes change the thread that calls them. After a session of ONNX Runtime with one thread, the thread
    treats denormal numbers as zero. OpenVINO replaces the thread's signal stack. If compiled models are
    destroyed in another order than they were created, that stack is freed memory, and the next signal ends
    the process.
    """

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        torch.set_flush_denormal(True)
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # compiled models must be destroyed in this thread
            raise

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: context.run(run, *args, **kwargs)).result()

    return wrapped


def timed_in_turn(runs: Sequence[Callable[[], object]], *, rounds: int, threads: int) -> np.ndarray:
    """Milliseconds, float64 ``[rounds, runs]``: each of ``runs`` once a round, after a warm-up.

    With one thread this is the CPU time of the calling thread, which does not count the time that it waits
    for other processes.
    """
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    for run in runs:
        for _ in range(WARM):
            run()
    times = np.empty((rounds, len(runs)))
    for turn in range(rounds):
        for offset in range(len(runs)):
            number = (turn + offset) % len(runs)
            start = clock()
            runs[number]()
            times[turn, number] = (clock() - start) / 1e6
    return times
