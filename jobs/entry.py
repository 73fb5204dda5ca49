"""How a job runs: one command of `cliffstore`, whose exit code is the job's status.

A first argument that ends in `.yaml` is the configuration; options behind it win. What the job has to say is one JSON
object a line: events on standard error, and at the end its report on standard output.
"""

from __future__ import annotations

import os
import sys

from cliffstore.cli.main import main
from cliffstore.run.progress import LOG_VARIABLE


def run(*command: str) -> int:
    """Run a command with the arguments of this process and return its exit code."""
    os.environ.setdefault(LOG_VARIABLE, "json")
    arguments = sys.argv[1:]
    if command != ("pipeline",) and arguments and arguments[0].endswith((".yaml", ".yml")):
        arguments.insert(0, "--config")
    if not sys.stdout.isatty() and "--json" not in arguments and "--help" not in arguments:
        arguments.append("--json")
    return main([*command, *arguments])
