"""``python -m disparse_structured``: the ``disparse`` command."""

from __future__ import annotations

import sys

from disparse_structured.cli import main

sys.exit(main())
