"""One line that says why a third-party library failed."""

from __future__ import annotations

import re

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \w+\n\s+(?P<code>[^\n]+)')
_LONGEST = 400


def reason(error: BaseException) -> str:
    """The innermost cause of ``error`` on one line, with the line of code it names, if it names one.

    torch wraps its reason in pages of advice; the cause at the end of the chain holds the reason and,
    for code that cannot be traced, the user's own line.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLOR.sub("", str(error)).strip()
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    if len(line) > _LONGEST:
        line = line[:_LONGEST] + " …"
    frames = list(_FRAME.finditer(text))
    where = ""
    if frames:
        frame = frames[-1]
        where = f" (at {frame['file']}:{frame['line']}: {frame['code'].strip()})"
    return f"{type(error).__name__}: {line}{where}"
