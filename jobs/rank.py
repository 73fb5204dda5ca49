"""`ray job submit --working-dir . -- python -m jobs.rank CONFIG.yaml [--probe refusal ...]`

The same options as `cliffstore cliff`. With a section `select` in the file, a selection is made of what was ranked.
"""

from __future__ import annotations

import sys

from jobs.entry import run

if __name__ == "__main__":
    sys.exit(run("cliff"))
