"""`ray job submit --working-dir . -- python -m jobs.export CONFIG.yaml [--output URL ...]`

The same options as `cliffstore export`.
"""

from __future__ import annotations

import sys

from jobs.entry import run

if __name__ == "__main__":
    sys.exit(run("export"))
