"""Extraction on a GPU against a bare prefill of the same tokens: what capturing, copying, compressing, writing cost.

usage: python benchmarks/gpu_extraction.py [--shape 8b|tiny] [--device cuda|cpu] [--examples 256] [--length 1024]
           [--rounds 3] [--folder DIR]

The weights are random, in the shape of Llama 3.1 8B (or of a toy, for a run without a GPU): nothing is fetched. The
examples are random words without common prefixes, so a node of the prefix tree is a token and nothing is saved by
sharing. `bare prefill` runs the model without its LM head over right-padded batches of the size that is fastest of
three, and keeps nothing. Then cliffstore extracts the last layer, four layers and all layers into --folder, on local
disk; its time is that of computing and of making everything durable. Planning and loading are shown apart. At the end
the parts of storing are timed by themselves: device to host, compression, digest, write.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numcodecs import Blosc
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from cliffstore.config import ExtractConfig
from cliffstore.run.progress import LineReporter
from cliffstore.run.stages import ExtractReport, run_extraction

SHAPES = {
    "8b": {
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 500_000.0,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
_WORDS = 32_000
_BATCHES = {"cuda": (4_096, 8_192, 16_384), "cpu": (256, 512, 1_024)}


def make_model(shape: str, folder: Path, device: str) -> None:
    """Save a model of random weights and a tokenizer with one token a word."""
    config = LlamaConfig(vocab_size=_WORDS + 4, max_position_embeddings=32_768, dtype="bfloat16", **SHAPES[shape])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<u>", "<a>"])}
    vocabulary |= {f"w{number}": number + 4 for number in range(_WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %} <a>{% endif %}"
    tokenizer.save_pretrained(folder)


def make_corpus(path: Path, examples: int, length: int) -> None:
    """Write random words, about `length` of them an example."""
    numbers = random.Random(0)
    rows = []
    for number in range(examples):
        n = max(int(length * numbers.uniform(0.75, 1.25)) - 1, 1)
        rows.append({"id": f"e{number}", "prompt": " ".join(f"w{numbers.randrange(_WORDS)}" for _ in range(n))})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def timed(run: Callable[[], object], device: str) -> float:
    """Return seconds."""
    begun = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@torch.inference_mode()
def prefill(model: PreTrainedModel, lengths: list[int], tokens: int, device: str) -> None:
    """Run all examples in right-padded batches of at most `tokens`, sorted by length."""
    batch: list[int] = []
    for length in [*sorted(lengths), 0]:
        if batch and (not length or (len(batch) + 1) * length > tokens):
            ids_BT = torch.randint(0, _WORDS, (len(batch), max(batch)), device=device)
            model(input_ids=ids_BT, use_cache=False)
            batch = []
        batch.append(length)


def bare(folder: Path, lengths: list[int], rounds: int, device: str) -> tuple[float, int]:
    """Return tokens a second of the fastest batch size, and that size."""
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval().to(device)
    speeds: dict[int, float] = {}
    for tokens in _BATCHES[device]:
        prefill(model, lengths[:8], tokens, device)
        seconds = [timed(lambda tokens=tokens: prefill(model, lengths, tokens, device), device) for _ in range(rounds)]
        speeds[tokens] = sum(lengths) / statistics.median(seconds)
    best = max(speeds, key=lambda tokens: speeds[tokens])
    return speeds[best], best


def extract(folder: Path, layers: str, device: str, number: int) -> ExtractReport:
    """Extract into a new store, and remove it."""
    store = folder / f"store-{number}"
    config = ExtractConfig(
        corpus=(str(folder / "corpus.jsonl"),), model=str(folder / "model"), store=str(store), layers=layers,
        device=device, executor="local", yes=True,
    )  # fmt: skip
    report = run_extraction(config, LineReporter())
    shutil.rmtree(store)
    return report


def parts(shape: str, device: str, folder: Path) -> dict[str, float]:
    """Return GB/s of each part of storing, one thread each, on one block of one layer's vectors."""
    width = int(SHAPES[shape]["hidden_size"])
    block = torch.randn(65_536, width, dtype=torch.bfloat16, device=device)
    host = torch.empty(block.shape, dtype=block.dtype, pin_memory=device == "cuda")
    size = block.nbytes / 1e9
    codec = Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE)
    found = {"device to host": size / min(timed(lambda: host.copy_(block), device) for _ in range(3))}
    chunks = np.split(host.view(torch.uint16).numpy(), len(host) // 256)
    encoded: list[bytes] = []
    found["compression, a thread"] = size / timed(lambda: encoded.extend(codec.encode(one) for one in chunks), "cpu")
    found["digest, a thread"] = size / timed(lambda: hashlib.sha256(host.view(torch.uint16).numpy()).digest(), "cpu")
    path = folder / "written"
    found["write, compressed"] = (
        sum(map(len, encoded)) / 1e9 / timed(lambda: path.write_bytes(b"".join(encoded)), "cpu")
    )
    found["compressed to"] = sum(map(len, encoded)) / 1e9 / size
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--length", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        make_model(given.shape, folder / "model", given.device)
        make_corpus(folder / "corpus.jsonl", given.examples, given.length)
        lengths = [len(json.loads(line)["prompt"].split()) + 1 for line in (folder / "corpus.jsonl").open()]
        speed, batch = bare(folder / "model", lengths, given.rounds, given.device)
        where = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
        print(f"{where}, {given.shape}, {len(lengths)} examples, {sum(lengths):,} tokens, torch {torch.__version__}")
        print(f"bare prefill, batches of {batch:,}: {speed:,.0f} tokens/s")
        if given.device == "cuda":
            torch.cuda.empty_cache()
        n_layers = int(SHAPES[given.shape]["num_hidden_layers"])
        last, step = n_layers - 1, n_layers // 4
        four = ",".join(str(step * part - 1) for part in (1, 2, 3, 4))
        for label, layers in (("1 layer", str(last)), ("4 layers", four), ("all layers", "all")):
            reports = [extract(folder, layers, given.device, number) for number in range(given.rounds)]
            speeds = [report.tokens / report.seconds for report in reports]
            one = reports[0]
            print(
                f"{label:<11}{statistics.median(speeds):10,.0f} tokens/s, {statistics.median(speeds) / speed:.2f} of "
                f"bare prefill; {one.bytes / 1e9:,.2f} GB; planning {one.seconds_planning:.1f} s, loading "
                f"{one.seconds_loading:.1f} s, preparing {one.seconds_preparing:.1f} s; passes {one.passes}"
            )
        for part, rate in parts(given.shape, given.device, folder).items():
            print(f"{part}: {rate:.2f}" + ("" if part == "compressed to" else " GB/s"))


if __name__ == "__main__":
    main()
