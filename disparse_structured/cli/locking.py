"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from disparse_structured.cli.usage import UsageError


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other commands out of ``folder`` while the body runs.

    The lock is a file in the system's folder for temporary files, so that nothing is left in ``folder``. The
    system releases it if the process is killed.

    Raises:
        UsageError: another command writes there.
    """
    from filelock import FileLock, Timeout  # needed only here

    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir(), f"disparse-{name}.lock"), timeout=0, mode=0o666)
    try:
        held: contextlib.AbstractContextManager[object] = lock.acquire()
    except Timeout:
        raise UsageError(
            f"another run is writing to {str(folder)!r}. Wait for it, or name another folder."
        ) from None
    except PermissionError:  # another user's file: there is no lock that both can take
        held = contextlib.nullcontext()
    with held:
        yield


def first_process() -> bool:
    """Whether this is the only process, or the first of those that ``torchrun`` started."""
    return os.environ.get("RANK", "") in ("", "0")
