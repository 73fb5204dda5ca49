"""`ray job submit --working-dir . -- python -m jobs.pipeline CONFIG.yaml [--set extract.layers=8-20 ...]`

From corpus to training set; see `cliffstore pipeline`. Submitted again after it was killed, it goes on from there.
"""

from __future__ import annotations

import sys

from jobs.entry import run

if __name__ == "__main__":
    sys.exit(run("pipeline"))
