"""`ray job submit --working-dir . -- python -m jobs.extract CONFIG.yaml [--layers 8-20 ...]`

The same options as `cliffstore extract`; `CORPUS... --model M --store URL` in place of a file works too. Units run on
the cluster that the job runs on, unless `executor` says otherwise.
"""

from __future__ import annotations

import sys

from jobs.entry import run

if __name__ == "__main__":
    sys.exit(run("extract"))
