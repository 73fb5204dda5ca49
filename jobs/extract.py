"""`ray job submit --working-dir . -- python -m jobs.extract CORPUS... --model M --store URL`

The same options as `cliffstore extract`. The executor is Ray unless `--executor` says otherwise; the exit code is the
job's status.
"""

from __future__ import annotations

import sys

from cliffstore.cli.main import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--executor" not in arguments:
        arguments += ["--executor", "ray"]
    sys.exit(main(["extract", *arguments]))
