"""Peak memory of an extraction, by the number of prompts.

usage: python benchmarks/memory.py MODEL PROMPTS.jsonl [--counts 2000,8000] [--unit-rows 2048] [--layers all]

Memory goes with the size of a unit. By default a small corpus gets small units, so that there are enough of them to
share out; --unit-rows makes them equal, `--unit-rows 0` leaves the default. Where there are fewer prompts than asked
for, they are used again with a number behind them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def corpus_of(prompts: list[str], count: int, path: Path) -> Path:
    """Write `count` different prompts."""
    rows = []
    for number in range(count):
        again, which = divmod(number, len(prompts))
        rows.append({"id": f"p{number}", "prompt": prompts[which] + (f" (version {again})" if again else "")})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--counts", default="2000,8000")
    parser.add_argument("--unit-rows", type=int, default=2_048)
    parser.add_argument("--layers", default="all")
    given = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in given.prompts.read_text(encoding="utf-8").splitlines()]
    peaks = []
    for count in map(int, given.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            corpus = corpus_of(prompts, count, Path(folder) / "corpus.jsonl")
            config = {"corpus": [str(corpus)], "model": given.model, "store": f"{folder}/store", "layers": given.layers}
            if given.unit_rows:
                config["unit_rows"] = given.unit_rows
            done = subprocess.run(
                [sys.executable, str(HERE / "one_run.py"), json.dumps(config)],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        peaks.append(found["peak_memory"])
        print(
            f"{count:,} prompts: {found['rows']:,} rows in {found['units']} units, {found['bytes'] / 1e6:,.0f} MB, "
            f"peak memory {found['peak_memory'] / 1e6:,.0f} MB",
            flush=True,
        )
    print(f"largest / smallest: {max(peaks) / min(peaks):.3f}")


if __name__ == "__main__":
    main()
