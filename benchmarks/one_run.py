"""One extraction in a process of its own, for `extraction.py` and `memory.py`.

usage: python benchmarks/one_run.py '{"corpus": ["PATH"], "model": "PATH", "store": "PATH", ...}' [--discard]

The first argument is an `ExtractConfig` in JSON. With `--discard` everything is computed, and nothing is copied,
compressed or written. Prints JSON: what the run reports, and the process's peak memory in bytes. Libraries are
imported before the clock starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import duckdb  # noqa: F401
import tensorstore  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
import zarr  # noqa: F401

from cliffstore.config import ExtractConfig
from cliffstore.extract import unit
from cliffstore.extract.passes import Pass
from cliffstore.run.progress import LineReporter
from cliffstore.run.stages import run_extraction


class Discard:
    """A sink that keeps nothing."""

    def __init__(self, *_arguments: object, **_options: object) -> None:
        pass

    def begin(self, one: Pass) -> None:
        pass

    def take(self, name: str, vectors_ND: torch.Tensor) -> None:
        pass

    def check(self) -> None:
        pass

    def finish(self) -> dict[str, object]:
        return {}

    def give_back(self) -> None:
        pass


def write_nothing(
    _objects: object, _arrays: object, _capture: object, facts: unit.UnitFacts, _blocks: object, seconds: float
) -> SimpleNamespace:
    """Stand in for `commit_unit`."""
    return SimpleNamespace(bytes=0, seconds=seconds, worker=facts.worker)


def peak_memory() -> int:
    """Return the process's largest resident memory so far, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(config: str, discard: bool) -> None:
    """Run it and print what was measured."""
    if discard:
        unit.ActivationBlocks = Discard  # type: ignore[assignment,misc]
        unit.commit_unit = write_nothing  # type: ignore[assignment]
    report = run_extraction(ExtractConfig.model_validate_json(config), LineReporter())
    print(json.dumps({**report.to_dict(), "peak_memory": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1], "--discard" in sys.argv[2:])
