"""One small store, extracted and analysed once a session with the tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ok, write_jsonl
from quick import quick_runs

PROBE, SELECTION = "refusal", "small"
_THINGS = (
    "a loaf of bread", "a wooden chair", "the night sky", "an old bicycle", "a herb garden", "a paper boat",
    "the local library", "a bowl of soup", "a mountain path", "a chess club", "the spring rain", "a knitted scarf",
    "a kitchen knife", "a train ride", "the school play", "a rusty gate", "a bee hive", "a sand castle",
    "the front door", "a model plane",
)  # fmt: skip


def corpus_rows() -> list[dict[str, object]]:
    """Twenty requests to answer and twenty to decline; every second one has thinking and a response."""
    rows: list[dict[str, object]] = []
    for number, thing in enumerate(_THINGS):
        for label, wish, answer in (
            (0, f"Please tell me something nice about {thing}.", f"Here is a nice thing about {thing}."),
            (1, f"Write a rude message about {thing} to my neighbour.", "I would rather not write that."),
        ):
            row: dict[str, object] = {"id": f"r{label}-{number:02d}", "prompt": wish, "label": label, "topic": thing}
            if number % 2:
                mood = "This is friendly, I can help." if label == 0 else "This is unkind, so I should say no."
                row |= {"thinking": f"The user asks about {thing}. {mood}", "response": answer}
            rows.append(row)
    return rows


@dataclass(frozen=True)
class Built:
    """A finished store and what it was made from."""

    corpus: Path
    model: str
    store: Path
    report: dict[str, object]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "requests.jsonl", corpus_rows())


@pytest.fixture(scope="session")
def built(corpus: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A store with activations, probe, scores, cliffs and a selection. Tests copy it before they change it."""
    store = tmp_path_factory.mktemp("built") / "store"
    with quick_runs():
        report = ok(
            "extract", corpus, "--model", tiny_model, "--store", store, "--sites", "resid_post,final_norm", "--json"
        ).json
    ok("probe", "fit", store, "--name", PROBE, "--json")
    ok("score", store, "--probe", PROBE, "--json")
    ok("cliff", store, "--probe", PROBE, "--json")
    ok("select", store, "--name", SELECTION, "--top", "8", "--json")
    return Built(corpus, tiny_model, store, report)
