"""``python -m inference.batch`` is ``unclip batch``: see ``unclip.app.batch``."""

from __future__ import annotations

import sys

from unclip.app.batch import main

if __name__ == "__main__":
    sys.exit(main())
