"""A long example needs the memory of its vectors and of one pass, not that of a pass over all of it.

The model's inner width is large, so that what grows with the pass is most of what a pass takes: a pass over the whole
example would hold a gigabyte of it, or a mask of 20,000 x 20,000.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cliffstore import Store

SHORT, LONG, PASS_TOKENS = 2_000, 20_000, 512
N_LAYERS, INNER_WIDTH = 2, 4_096
MOST_GROWTH = 400e6
"""Bytes. Measured: 190 MB; with whole passes 2,500 MB and 890 MB."""
KINDS = ("tree", "padded")

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@dataclass(frozen=True)
class Extracted:
    """A store of one example, and the most bytes of memory that making it took."""

    store: Path
    memory: int


@pytest.fixture(scope="module")
def model(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("long-model")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=INNER_WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=32_768,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def extract(start: forked.Start, model: str, corpus: Path, store: Path, kind: str) -> Extracted:
    command = [
        "extract", str(corpus), "--model", model, "--store", str(store), "--passes", kind, "--pass-tokens",
        str(PASS_TOKENS), "--json",
    ]  # fmt: skip
    done = start(command, store.with_suffix(".log"), {forked.SAY_MEMORY: "1"})
    said = done.wait(250)
    assert done.returncode == 0, said
    assert json.loads(done.printed)["examples"] == 1
    return Extracted(store, int(said.split("VmHWM:")[1].split()[0]) * 1_024)


@pytest.fixture(scope="module")
def extracted(
    fork_server: None, model: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], Extracted]:
    """Return (kind of pass, tokens) -> what was extracted."""
    folder = tmp_path_factory.mktemp("long")
    words = random.Random(0)
    corpora: dict[int, Path] = {}
    for tokens in (SHORT, LONG):
        text = " ".join(words.choice(("stone", "river", "cloud", "meadow", "needle")) for _ in range(tokens))
        corpora[tokens] = folder / f"{tokens}.jsonl"
        corpora[tokens].write_text(json.dumps({"id": "only", "prompt": text}) + "\n", encoding="utf-8")
    cases = [*((kind, LONG) for kind in KINDS), ("tree", SHORT)]

    def run(case: tuple[str, int]) -> Extracted:
        return extract(start, model, corpora[case[1]], folder / f"{case[0]}-{case[1]}", case[0])

    with forked.commands() as start, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(cases, pool.map(run, cases), strict=True))


@pytest.fixture(scope="module")
def plain(model: str, extracted: dict[tuple[str, int], Extracted]) -> Callable[[int], np.ndarray]:
    """Return a function: layer -> the vectors of a plain forward over the whole long example."""
    with Store(str(extracted["tree", LONG].store)) as store:
        ids = store.sql("SELECT token_id FROM tokens ORDER BY position").fetchnumpy()["token_id"]
    loaded = AutoModel.from_pretrained(model, attn_implementation="sdpa").eval()
    vectors: dict[int, np.ndarray] = {}
    for layer, block in enumerate(loaded.layers):
        block.register_forward_hook(
            lambda _block, _inputs, output, layer=layer: vectors.update({layer: output[0].numpy()})
        )
    with torch.inference_mode():
        loaded(input_ids=torch.tensor(ids.astype(np.int64))[None], use_cache=False)
    return vectors.__getitem__


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_a_pass(extracted: dict[tuple[str, int], Extracted], kind: str) -> None:
    growth = extracted[kind, LONG].memory - extracted["tree", SHORT].memory
    print(f"{kind}: {extracted['tree', SHORT].memory / 1e6:.0f} MB, and {growth / 1e6:.0f} MB more")
    assert growth < MOST_GROWTH


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_a_plain_forward(
    extracted: dict[tuple[str, int], Extracted], plain: Callable[[int], np.ndarray], kind: str
) -> None:
    with Store(str(extracted[kind, LONG].store)) as store:
        rows = store.sql("SELECT row FROM tokens ORDER BY position").fetchnumpy()["row"]
        assert len(rows) >= LONG
        for layer in range(N_LAYERS):
            found, expected = store.vectors("resid_post", layer, rows), plain(layer)
            relative = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
            print(f"{kind}, layer {layer}: {relative.max():.1e}")
            assert relative.max() <= 1e-4
