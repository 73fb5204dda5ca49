"""`ray job submit --working-dir . -- python -m jobs.fit_probe CONFIG.yaml [--name refusal ...]`

The same options as `cliffstore probe fit`.
"""

from __future__ import annotations

import sys

from jobs.entry import run

if __name__ == "__main__":
    sys.exit(run("probe", "fit"))
