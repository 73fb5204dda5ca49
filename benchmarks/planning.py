"""Planning many short examples: rate and memory, from a JSON Lines file to committed plan tables on local disk.

usage: python benchmarks/planning.py [--examples 2000000] [--folder FOLDER]

Prompts are made of random words, with a tokenizer of those words and a chat template of its own. Memory is that of the
driver and all processes that it starts, together: resident (shared pages counted once for each process) and
proportional (shared pages shared out), the largest of samples taken four times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

WORDS = 500
PLAN = """
import json, sys, time
from cliffstore.config import load_config
from cliffstore.model.identity import find_model
from cliffstore.run.progress import LineReporter
from cliffstore.run.work import find_work
from cliffstore.store.objects import ObjectStore
corpus, model, store = sys.argv[1:]
config = load_config(None, {"corpus": (corpus,), "model": model, "store": store})
begun = time.monotonic()
with find_work(config, find_model(model, None, print), None, 64 * 4 * 2, LineReporter()) as work:
    planned = time.monotonic()
    work.write(ObjectStore(store))
    written = time.monotonic()
    print(json.dumps({"examples": work.n_examples, "tokens": work.n_tokens, "rows": work.n_rows,
                      "units": len(work.units), "planning": planned - begun, "writing": written - planned}))
"""


def make_model(folder: Path) -> Path:
    """Write a tiny model, with a tokenizer of some hundred words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    marks = ["<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {word: number for number, word in enumerate([*marks, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", additional_special_tokens=marks[1:], eos_token="<|end|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=len(vocabulary)
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def words() -> list[str]:
    """Return made-up words."""
    numbers = random.Random(0)
    return sorted({"".join(numbers.choices("abcdefghiklmnoprstuv", k=5)) for _ in range(WORDS)})


def write_corpus(path: Path, count: int) -> Path:
    """Write prompts of 6 to 14 words."""
    numbers, known = random.Random(1), words()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt = " ".join(numbers.choices(known, k=numbers.randint(6, 14)))
            file.write(json.dumps({"id": f"p{number}", "prompt": prompt, "label": str(number % 2)}) + "\n")
    return path


def memory(process: psutil.Process) -> tuple[int, int]:
    """Return resident and proportional bytes of a process and all its descendants."""
    resident = proportional = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            found = one.memory_full_info()
        except psutil.Error:
            continue
        resident, proportional = resident + found.rss, proportional + getattr(found, "pss", found.rss)
    return resident, proportional


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder, some of which may go while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2_000_000)
    parser.add_argument("--folder", help="where everything is put; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        model = make_model(Path(folder) / "model")
        corpus = write_corpus(Path(folder) / "corpus.jsonl", given.examples)
        command = [sys.executable, "-c", PLAN, str(corpus), str(model), f"{folder}/store"]
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)})
        process, peaks, disk = psutil.Process(run.pid), (0, 0), 0
        while run.poll() is None:
            peaks = tuple(map(max, zip(peaks, memory(process), strict=True)))  # type: ignore[assignment]
            disk = max(disk, size_of(scratch))
            time.sleep(0.25)
        out, _ = run.communicate()
        sizes = [path.stat().st_size / 1e6 for path in Path(folder, "store").rglob("*.parquet")]
        found = json.loads(out.splitlines()[-1])
        seconds = found["planning"]
        print(
            f"{found['examples']:,} examples, {found['tokens']:,} tokens, {found['rows']:,} rows, "
            f"{found['units']:,} units: planned in {seconds:,.0f} s ({found['examples'] / seconds:,.0f} examples/s, "
            f"{found['tokens'] / seconds:,.0f} tokens/s), written in {found['writing']:,.1f} s\n"
            f"corpus {corpus.stat().st_size / 1e6:,.0f} MB, tables {sum(sizes):,.0f} MB in {len(sizes)} files, the "
            f"largest {max(sizes):,.1f} MB; scratch on disk {disk / 1e6:,.0f} MB\n"
            f"peak memory of all processes: {peaks[0] / 1e6:,.0f} MB resident, {peaks[1] / 1e6:,.0f} MB proportional"
        )


if __name__ == "__main__":
    main()
