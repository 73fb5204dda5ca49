"""Makes the golden stores of a version: `python tests/golden/make.py VERSION` writes `tests/golden/VERSION/`.

To be run once, by the version that it names, and committed. A golden store is never made again and never changed: it is
what that version wrote, which later ones must read. `schemas/compatibility.md` says when a new one is due.

A case is a folder with `store/`, and what this version read of it: `views/<view>.parquet`, `vectors.npz` (float32 of
some rows of each array), and, where there is a selection, `training-set/`. Models are random and tiny and are not kept;
two runs need not give the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import cliffstore
from cliffstore.model.gguf import converted
from cliffstore.run.shipped_model import shipped_model
from cliffstore.store.writer import capture_specs

HERE = Path(__file__).parent
PROBE, SELECTION = "unkind", "steep"
VECTOR_ROWS = 24
"""Of each array, spread over its rows."""

_THINGS = ("a herb garden", "the night sky", "a chess club", "an old bicycle", "a bee hive", "the front door")
_SETTINGS = {"passes": "tree", "pass_tokens": 64, "executor": "local"}
_EXPORT = {"format": "messages", "mix": "20%", "mix_where": "label = '0'", "target_column": "response"}
"""How the training set was exported; the test exports again in this way."""


def main(version: str) -> None:
    """Make both cases."""
    target = HERE / version
    if target.exists():
        sys.exit(f"{target} is there already, and a golden store is never made again")
    socket.gethostname = lambda: "golden"
    tokenizer = converted(shipped_model(), print)
    with TemporaryDirectory() as temporary:
        os.chdir(temporary)  # documents name models and corpora as they were given
        for folder, dtype, seed in (("base", "bfloat16", 0), ("tuned", "bfloat16", 1), ("small", "float32", 2)):
            make_model(Path(folder), tokenizer, dtype, seed)
        for case in (bfloat16, float32):
            case(case.__name__)
            record(Path(case.__name__))
            shutil.copytree(case.__name__, target / case.__name__)


def bfloat16(case: str) -> None:
    """Two models row for row, a site of heads, two plans, positions that are not stored, rows that are skipped."""
    one, two = write_corpus("first.jsonl", 6), write_corpus("second.jsonl", 4, seed=1)
    store = f"{case}/store"
    settings = _SETTINGS | {"sites": "resid_post,z,final_norm"}
    planned = {"unit_rows": 256, "positions": "think,decision,last:2"}
    cliffstore.extract(one, model="base", store=store, **planned, **settings)
    cliffstore.extract([one, two], model="base", store=store, append=True, **planned, **settings)
    cliffstore.extract(model="tuned", model_alias="tuned", store=store, **settings)


def float32(case: str) -> None:
    """Activations, a probe and a control, scores, cliffs, heads, a selection and a training set."""
    store = f"{case}/store"
    corpus = write_corpus("requests.jsonl", 16, seed=2)
    settings = _SETTINGS | {"layers": "1", "sites": "resid_post,z", "unit_rows": 256}
    cliffstore.extract(corpus, model="small", store=store, **settings)
    with cliffstore.Store(store) as opened:
        opened.fit_probe(PROBE, label="label", positions="decision,-1", executor="local")
        opened.random_probes(PROBE, 1)
        opened.score(PROBE, executor="local")
        opened.cliff(PROBE, window="last:6")
        opened.trace_heads(PROBE, source="model")
        opened.select(SELECTION, top="5", probe=PROBE, where="label = '1'", dedupe="prompt:0.9")
    export(Path(store), Path(case) / "training-set")


def export(store: Path, output: Path) -> None:
    """Export the selection of a store by an address that is the same everywhere: rows name their store."""
    memory = fsspec.filesystem("memory")
    if memory.exists("/golden"):
        memory.rm("/golden", recursive=True)
    memory.put(f"{store}/", "/golden/", recursive=True)
    with cliffstore.Store("memory://golden") as opened:
        opened.export(SELECTION, str(output), **_EXPORT)


def record(case: Path) -> None:
    """Write down what this version reads of a store."""
    (case / "views").mkdir()
    with cliffstore.Store(str(case / "store")) as store:
        for view in store.catalog.names():
            if (rows := rows_of(store, view)).num_rows:
                pq.write_table(rows, case / "views" / f"{view}.parquet", compression="zstd")
        stored = store.catalog.arrow("SELECT DISTINCT row FROM tokens WHERE row IS NOT NULL ORDER BY row")
        stored_N = np.asarray(stored["row"])
        rows_N = stored_N[np.linspace(0, len(stored_N) - 1, VECTOR_ROWS).astype(np.int64)]
        vectors = {
            spec.key: store.reader.vectors(spec.site, spec.layer, rows_N, spec.alias)
            for capture in store.reader.captures()
            for spec in capture_specs(capture)
        }
    np.savez_compressed(case / "vectors.npz", rows=rows_N, **vectors)


def rows_of(store: cliffstore.Store, view: str) -> pa.Table:
    """Return a view, in an order of its own."""
    return store.catalog.arrow(f"SELECT * FROM {view} ORDER BY ALL")


def write_corpus(path: str, n: int, seed: int = 0) -> str:
    """Write mild invented requests, half of them with thinking, and two rows that cannot be used."""
    numbers = random.Random(seed)
    lines: list[Mapping[str, object]] = []
    for number in range(n):
        thing, unkind = numbers.choice(_THINGS), number % 2
        row = {"id": f"{path[0]}{number:02d}", "label": unkind, "topic": thing, "weight": number / 4}
        row["prompt"] = f"Write something {'rude' if unkind else 'nice'} about {thing}, {number} words."
        row["response"] = "I would rather not." if unkind else f"I like {thing}."
        if number % 4 < 3:
            row["thinking"] = f"It is about {thing}. {'That is unkind.' if unkind else 'That is friendly.'}"
        lines.append(row)
    lines += [{"id": f"{path[0]}-empty", "prompt": ""}, {"id": f"{path[0]}-none", "prompt": None}]
    Path(path).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def make_model(folder: Path, tokenizer: Path, dtype: str, seed: int) -> None:
    """Write two random Llama blocks of width 8 behind a real tokenizer and template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(words),
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    words.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
