"""A run that is disturbed, and the store of one that was not."""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from commands import ok, write_jsonl
from quick import quick_runs

ROOT = Path(__file__).parents[1]
N_WORDS, UNIT_ROWS = 40, 512
WORDS = (
    "anchor", "apple", "basket", "blanket", "bridge", "button", "candle", "castle", "cloud", "copper", "desert",
    "engine", "feather", "forest", "garden", "hammer", "harbour", "island", "ladder", "lantern", "letter", "marble",
    "meadow", "mirror", "music", "needle", "orange", "paper", "pocket", "ribbon", "river", "saddle", "silver", "stone",
    "summer", "thunder", "tunnel", "velvet", "whistle", "window", "winter",
)  # fmt: skip


@dataclass(frozen=True)
class Disturbed:
    """A corpus and a model; `reference` is the store of a run on one thread that nobody disturbed."""

    corpus: Path
    model: str
    reference: str
    units: int

    def arguments(self, store: str | Path, *more: str) -> list[str]:
        return [
            "extract", str(self.corpus), "--model", self.model, "--store", str(store), "--unit-rows", str(UNIT_ROWS),
            "--passes", "tree", "--pass-tokens", "64", "--json", *more,
        ]  # fmt: skip

    def command(self, store: str | Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "cliffstore.cli.main", *self.arguments(store, *more)]

    def finish(self, store: str | Path) -> dict[str, object]:
        """Run the same command to its end, in this process."""
        with quick_runs():
            return ok(*self.arguments(store)).json


def prepare(folder: Path, model: str, n_prompts: int, seed: int = 0) -> Disturbed:
    numbers = random.Random(seed)
    rows = [{"id": f"w{i:04d}", "prompt": " ".join(numbers.choices(WORDS, k=N_WORDS))} for i in range(n_prompts)]
    corpus = write_jsonl(folder / "words.jsonl", rows)
    case = Disturbed(corpus, model, str(folder / "reference"), 0)
    report = case.finish(case.reference)
    return Disturbed(corpus, model, case.reference, int(str(report["units"])))


def receipts(store: str | Path) -> list[Path]:
    return sorted(Path(store).glob("receipts/*/unit-*[0-9].json"))


def workers_of(store: str | Path) -> set[str]:
    return {json.loads(path.read_text())["worker"] for path in receipts(store)}


def one_thread(environment: dict[str, str]) -> dict[str, str]:
    """Sums over other numbers of threads differ in their last bits."""
    return environment | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def plain_environment() -> dict[str, str]:
    return one_thread(dict(os.environ) | {"HF_HUB_OFFLINE": "1"})
