"""`ray job submit --working-dir . -- python -m jobs.score CONFIG.yaml [--probe refusal]`

The same options as `cliffstore score`: units that have no scores yet are scored from stored activations.
"""

from __future__ import annotations

import sys

from jobs.entry import run

if __name__ == "__main__":
    sys.exit(run("score"))
