"""Extraction against what a user would run instead, interleaved, as ratios of logical tokens a second.

usage: python benchmarks/extraction.py MODEL PROMPTS.jsonl [--rounds 3] [--baseline-examples N]
           [--cases chat,bare,clipping] [--only NAME,...] [--output FILE.json]

Cases, all over the same rendered texts for everybody:
  chat      the prompts in the model's chat template, whose system prompt they all share
  bare      the same without a system prompt: no common prefix but the template's first tokens
  clipping  64 prompts, each followed by 0, 20, 40, 60, 80 and 100 % of a thinking of 300 tokens

Runs: `forward` and `naive` as in plain.py, in bfloat16, and `forward float32`; cliffstore with all layers, with layer
10 alone, and with all layers computed but not stored. cliffstore's time is planning, preparing, computing and making
everything durable, without loading the model; loading does not count for the others either. Each round runs each once,
in an order drawn anew. `--baseline-examples` times the baselines on a random sample, where all would take hours: their
speed does not depend on the number of examples.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

HERE = Path(__file__).parent
_AS_IT_IS = "{{ messages[0]['content'] }}"
_BARE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CLIPPED_PROMPTS, _THINKING_TOKENS = 64, 300
_CLIPS = (0, 20, 40, 60, 80, 100)


@dataclass(frozen=True)
class Case:
    """A corpus, the model folder that renders it, and the rendered texts."""

    name: str
    model: Path
    corpus: Path
    texts: Path
    baseline: Path


@dataclass
class Figures:
    """Logical tokens a second of each run, by its name."""

    speeds: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def add(self, name: str, speed: float, detail: dict[str, object]) -> None:
        self.speeds.setdefault(name, []).append(speed)
        self.details.setdefault(name, []).append(detail)
        print(f"  {name:<22}{speed:10,.0f} tokens/s", flush=True)

    def ratio(self, one: str, other: str) -> float:
        return statistics.median(self.speeds[one]) / statistics.median(self.speeds[other])


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_template(model: Path, folder: Path, template: str) -> Path:
    """Return a model folder that differs in its chat template alone."""
    folder.mkdir()
    for path in model.iterdir():
        if path.name not in ("tokenizer_config.json", "chat_template.jinja"):
            (folder / path.name).symlink_to(path.resolve())
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def thinking_of(prompt: str, tokenizer: PreTrainedTokenizerBase, others: list[str]) -> list[int]:
    """Return 300 tokens of plain text that differ from prompt to prompt."""
    words = f"The user asks: {prompt} Let me consider what that means. " + " ".join(others)
    return list(tokenizer(words, add_special_tokens=False)["input_ids"][:_THINKING_TOKENS])


def clipped(prompts: list[dict[str, object]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, object]]:
    """Return each prompt with its thinking cut at several places."""
    chosen = prompts[:_CLIPPED_PROMPTS]
    rows: list[dict[str, object]] = []
    for number, row in enumerate(chosen):
        others = [str(chosen[(number + step) % len(chosen)]["prompt"]) for step in range(1, 40)]
        ids = thinking_of(str(row["prompt"]), tokenizer, others)
        for clip in _CLIPS:
            thinking = tokenizer.decode(ids[: len(ids) * clip // 100])
            rows.append({"id": f"{row['id']}-{clip}", "prompt": row["prompt"], "thinking": thinking or None})
    return rows


def render(case_model: Path, corpus: Path, folder: Path) -> list[dict[str, object]]:
    """Return the texts that cliffstore makes of a corpus, as its own tokens spell them."""
    from cliffstore.config import ExtractConfig
    from cliffstore.model.identity import find_model
    from cliffstore.run.planning import plan_corpus
    from cliffstore.run.progress import LineReporter

    config = ExtractConfig(corpus=(str(corpus),), model=str(case_model), store=str(folder / "unused"))
    source = find_model(config.model, None, print, None)
    plan = plan_corpus(config, source, None, 1, LineReporter()).plan
    tokenizer = AutoTokenizer.from_pretrained(case_model)
    examples = [planned.example for unit in plan.units for planned in unit.examples]
    texts = [tokenizer.decode(one.token_ids, clean_up_tokenization_spaces=False) for one in examples]
    for text, example in zip(texts, examples, strict=True):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == example.token_ids.tolist(), text
    return [{"prompt": text} for text in texts]


def make_case(name: str, model: Path, prompts: list[dict[str, object]], folder: Path, sample: int | None) -> Case:
    """Write what a case needs into `folder`."""
    folder = folder / name
    folder.mkdir()
    own_model = with_template(model, folder / "model", _BARE) if name == "bare" else model
    rows = clipped(prompts, AutoTokenizer.from_pretrained(model)) if name == "clipping" else prompts
    corpus = write_jsonl(folder / "corpus.jsonl", rows)
    texts = render(own_model, corpus, folder)
    random.Random(0).shuffle(texts)
    return Case(
        name,
        own_model,
        corpus,
        write_jsonl(folder / "texts.jsonl", texts[:sample]),
        with_template(model, folder / "baseline", _AS_IT_IS),
    )


def call(arguments: list[str]) -> dict[str, object]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def plain(case: Case, which: str, dtype: str) -> tuple[float, dict[str, object]]:
    found = call([str(HERE / "plain.py"), str(case.baseline), str(case.texts), which, dtype])
    return float(str(found["tokens"])) / float(str(found["seconds"])), found


def script(case: Case, path: str, which: str) -> tuple[float, dict[str, object]]:
    """Run another script of baselines, which prints `WHICH SPEED tok/s tokens N`."""
    n = len(case.texts.read_text(encoding="utf-8").splitlines())
    done = subprocess.run(
        [sys.executable, path, str(case.baseline), str(case.texts), which, str(n)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = done.stdout.split()
    return float(words[1]), {"tokens": int(words[-1])}


def ours(case: Case, options: dict[str, object], flags: list[str]) -> tuple[float, dict[str, object]]:
    store = Path(tempfile.mkdtemp(dir=case.corpus.parent))
    config = {"corpus": [str(case.corpus)], "model": str(case.model), "store": str(store / "s"), "yes": True, **options}
    found = call([str(HERE / "one_run.py"), json.dumps(config), *flags])
    shutil.rmtree(store)
    took = sum(float(str(found[name])) for name in ("seconds_planning", "seconds_preparing", "seconds"))
    return float(str(found["tokens"])) / took, found


Run = Callable[[], tuple[float, dict[str, object]]]


def runs_of(case: Case, baselines: str | None) -> Iterator[tuple[str, Run]]:
    """Give each run of a round, by name."""
    for which in ("forward", "naive"):
        if baselines is not None:
            yield which, lambda which=which: script(case, baselines, which)
        else:
            yield which, lambda which=which: plain(case, which, "bfloat16")
    yield "forward float32", lambda: plain(case, "forward", "float32")
    yield "all layers", lambda: ours(case, {}, [])
    yield "all layers, computed", lambda: ours(case, {}, ["--discard"])
    yield "layer 10", lambda: ours(case, {"layers": "10"}, [])
    yield "all layers, float32", lambda: ours(case, {"dtype": "float32"}, [])


def measure(case: Case, rounds: int, baselines: str | None, only: set[str] | None) -> Figures:
    """Run everything in turns and print ratios."""
    figures = Figures()
    runs = [(name, run) for name, run in runs_of(case, baselines) if only is None or name in only]
    for number in range(rounds):
        print(f"{case.name}, round {number + 1} of {rounds}", flush=True)
        for name, run in random.sample(runs, len(runs)):
            figures.add(name, *run())
    print(f"{case.name}, medians of {rounds}:")
    for name, speeds in figures.speeds.items():
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        print(f"  {name:<22}{statistics.median(speeds):10,.0f} tokens/s   ({spread})")
    for one, other in _RATIOS:
        if one in figures.speeds and other in figures.speeds:
            print(f"  {one} / {other}: {figures.ratio(one, other):.2f}")
    return figures


_RATIOS = (
    ("all layers", "forward"),
    ("all layers", "naive"),
    ("all layers, float32", "forward float32"),
    ("layer 10", "all layers"),
    ("all layers", "all layers, computed"),
)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline-examples", type=int)
    parser.add_argument("--cases", default="chat,bare,clipping")
    parser.add_argument("--only", help="names of runs, joined by semicolons")
    parser.add_argument("--baselines", help="another script for `forward` and `naive` in bfloat16")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    prompts = [json.loads(line) for line in given.prompts.read_text(encoding="utf-8").splitlines()]
    only = set(given.only.split(";")) if given.only else None
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.cases.split(","):
            case = make_case(name, given.model, prompts, Path(folder), given.baseline_examples)
            figures = measure(case, given.rounds, given.baselines, only)
            results[name] = {"speeds": figures.speeds, "details": figures.details}
    if given.output:
        given.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
