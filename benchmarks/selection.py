"""How long a choice takes beside the SQL that reads its candidates: ranking, quotas, near-duplicates.

python benchmarks/selection.py [--candidates 500000] [--chosen 8500] [--width 1024]

Prompts are 40 words of a vocabulary of 5,000, behind one of four common beginnings; one of ten repeats another but for
a word. Vectors are drawn, one of ten is another's with noise. Peak memory includes both tables.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import pyarrow as pa

from cliffstore.publish.choice import Gate, QuotaGate, choose, rank
from cliffstore.publish.criteria import parse_quota
from cliffstore.publish.duplicates import ActivationGate, PromptGate, spread

BEGINNINGS = ("Please explain in simple words why", "Write a long story about", "How can I", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=500_000)
    parser.add_argument("--chosen", type=int, default=8_500)
    parser.add_argument("--width", type=int, default=1_024)
    asked = parser.parse_args()
    n, generator = asked.candidates, np.random.default_rng(0)
    original_N = np.where(generator.random(n) < 0.1, generator.integers(0, n, n), np.arange(n))
    table = pa.table(
        {
            "example": pa.array(np.arange(n)),
            "id": pa.array([f"e{number}" for number in range(n)]),
            "value": pa.array(generator.normal(size=n).round(3)),
            "prompt": pa.array(prompts(original_N), pa.large_string()),
        }
    )
    begun = time.perf_counter()
    ranked = rank(table, ascending=False)
    print(f"{n:,} candidates, {asked.chosen:,} to choose; ranked in {time.perf_counter() - begun:.1f} s")
    origin_N = original_N[ranked["example"].to_numpy()]
    sources = [str(one % 20) for one in origin_N.tolist()]

    def read(index_N: np.ndarray) -> np.ndarray:
        return np.stack(
            [np.random.default_rng(one).standard_normal(asked.width, dtype=np.float32) for one in origin_N[index_N]]
        )

    for name, make in (
        ("nothing", list),
        ("a quota", lambda: [QuotaGate(parse_quota("s=6%"), sources, int(asked.chosen * 0.06))]),
        ("prompts", lambda: [PromptGate(ranked["prompt"].combine_chunks(), 0.8)]),
        ("activations", lambda: [ActivationGate(n, read, 0.98, asked.chosen, spread(n))]),
    ):
        begun = time.perf_counter()
        gates: list[Gate] = make()
        found = choose(n, asked.chosen, gates)
        seconds = time.perf_counter() - begun
        print(f"{name:<12} {seconds:6.1f} s  {len(found.index_N):,} chosen  left out: {found.left_out or 'none'}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def prompts(original_N: np.ndarray) -> list[str]:
    words = [f"w{number}" for number in range(5_000)]
    texts = []
    for number, original in enumerate(original_N.tolist()):
        drawn = np.random.default_rng([1, original]).integers(0, 5_000, 40)
        if number != original:
            drawn[-1] = number % 5_000
        texts.append(" ".join([BEGINNINGS[original % 4], *(words[one] for one in drawn.tolist())]))
    return texts


if __name__ == "__main__":
    main()
