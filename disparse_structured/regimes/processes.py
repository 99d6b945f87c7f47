"""One decision for all processes of a distributed run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def on_rank_zero(compute: Callable[[], T]) -> T:
    """The first process's ``compute()``, in every process; an exception is raised in all of them.

    Without a process group, this is simply ``compute()``. The result must be picklable.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return compute()
    message: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            message[0] = compute()
        except Exception as error:  # raised below, in all processes
            message[1] = error
    dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise message[1]
    return cast(T, message[0])
