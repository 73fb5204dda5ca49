"""An experiment's arithmetic by hand: which heads and examples it is on, what bears on a piece, rates and changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from cliffstore.analyze.rates import wilson
from cliffstore.corpus.answers import Answer
from cliffstore.errors import ConfigError
from cliffstore.model.forced import Line
from cliffstore.plan.choices import parse_choice
from cliffstore.publish.refusals import Refusals
from cliffstore.run.experiment.conditions import conditions_of, interventions_of, negative_heads
from cliffstore.run.experiment.examples import ChosenExamples, ExampleLine, choose
from cliffstore.run.experiment.model import ExperimentModel, Measured, _Written
from cliffstore.run.experiment.openers import first_tokens
from cliffstore.run.experiment.settings import CHOSEN, UNCHANGED, Condition, ExperimentSettings
from cliffstore.run.experiment.table import PIECE, Found, rows_of
from cliffstore.run.experiment.work import Work, facts_of

SETTINGS = ExperimentSettings("refusal", "e", resamples=0, random=2)
OFF = Condition(CHOSEN, 10.0, None, ((2, 1), (0, 3)), generates=True)


def told(_: str) -> None: ...


def test_heads_are_those_with_negative_shares_at_the_decision_over_all_examples() -> None:
    rows = [(0, 0, 9, -1.0), (0, 0, 1, 0.0), (1, 0, 9, 0.0), (1, 0, 1, -5.0), (2, -1, 9, -90.0), (2, 0, 9, 0.5)]
    table = pa.Table.from_pylist(
        [{"layer": 1, "head": head, "to_decision": at, "n": n, "mean": mean} for head, at, n, mean in rows]
    )
    assert negative_heads("named", table) == ((1, 0), (1, 1))


@pytest.mark.parametrize(("share", "n_heads"), [(1.0, 1), (5.0, 2), (6.25, 2), (7.9, 3), (50.0, 3)])
def test_a_share_is_of_all_heads_and_is_rounded_to_the_nearest(share: float, n_heads: int) -> None:
    negative = [(3, 0), (0, 1), (1, 2)]
    unchanged, chosen, *controls = conditions_of(negative, 4, 8, replace(SETTINGS, shares=(share,)), told)
    assert (unchanged.kind, unchanged.heads) == (UNCHANGED, ())
    assert chosen.heads == tuple(negative[:n_heads])
    assert [sorted(layer for layer, _ in one.heads) for one in controls] == [
        sorted(layer for layer, _ in chosen.heads)
    ] * 2


def test_random_sets_are_those_of_the_seed() -> None:
    def sets(seed: int) -> list[object]:
        return [one.heads for one in conditions_of([(0, 0)], 2, 32, replace(SETTINGS, random=5, seed=seed), told)[2:]]

    assert sets(0) == sets(0) != sets(1)


def test_what_is_done_to_heads_is_what_was_asked_for() -> None:
    asked = replace(SETTINGS, scale=0.5, keep_norm=True, positions="template,response")
    changes = interventions_of(OFF, asked)
    assert changes is not None
    (step,) = changes.steps
    assert [(one.layer, one.head, one.factors) for one in step.heads] == [(0, 3, [0.5]), (2, 1, [0.5])]
    assert step.keep_norm
    assert changes.choices == (parse_choice("template,response"),)
    assert interventions_of(replace(OFF, kind=UNCHANGED, heads=()), asked) is None


def _line(answer: list[int]) -> ExampleLine:
    prompt = Line(np.arange(3), np.zeros(3, dtype=np.uint8), 2)
    return ExampleLine(0, "a", prompt, np.array(answer, dtype=np.int64), opens=False, has_thinking=False)


def _key(way: str = "fixed", condition: Condition = OFF, answer: tuple[int, ...] = (5,), **changes: object) -> str:
    """The key of a piece."""
    given = {"dtype": "float32", "weights": "w", "measured": (1, 2), "refusing": 4, "complying": 9, "probe": "d"}
    of_settings = {name: value for name, value in changes.items() if name not in given}
    given |= {name: value for name, value in changes.items() if name in given}
    settings = replace(SETTINGS, **of_settings)
    identity = SimpleNamespace(weights_digest=given["weights"], revision=None, config_digest="0", adapter=None)
    facts = facts_of(
        SimpleNamespace(digest=given["probe"], dtype=given["dtype"]),  # type: ignore[arg-type]
        SimpleNamespace(identity=identity),  # type: ignore[arg-type]
        ChosenExamples((0,), given["measured"], ()),  # type: ignore[arg-type]
        settings,
        ({"I": given["refusing"]}, {"Sure": given["complying"]}),  # type: ignore[dict-item]
        [_line(list(answer))],
    )
    work = Work(None, settings, (), (), facts)  # type: ignore[arg-type]
    return work.key_of(way, condition)  # type: ignore[arg-type]


def test_all_that_bears_on_a_piece_is_in_its_name_and_nothing_else() -> None:
    others = [
        _key("regenerated"), _key(condition=replace(OFF, heads=((2, 1),))), _key(answer=(6,)), _key(scale=0.5),
        _key(condition=replace(OFF, generates=False)), _key(keep_norm=True), _key(positions="template"),
        _key(new_tokens=9), _key(thinking_tokens=9), _key(batch_size=9), _key(dtype="bfloat16"), _key(weights="x"),
        _key(measured=(1, 3)), _key(refusing=5), _key(complying=8), _key(probe="x"),
    ]  # fmt: skip
    assert len({_key(), *others}) == 1 + len(others)
    assert {_key(resamples=7), _key(level=0.5), _key(random=9), _key(condition=replace(OFF, share=3.0))} == {_key()}


class _Prompts:
    """A catalog that knows the prompts of harmful and benign examples."""

    def __init__(self, harmful: list[str], benign: list[str]) -> None:
        ordinals = range(len(harmful) + len(benign))
        table = pa.table({"example": pa.array(ordinals, pa.int64()), "prompt": harmful + benign})
        self._tables = [table.slice(0, len(harmful)), table.slice(len(harmful))]

    def arrow(self, statement: str) -> pa.Table:
        return self._tables["label = '0'" in statement]


def test_no_prompt_that_is_traced_is_measured_not_even_as_a_benign_one() -> None:
    harmful, benign = [f"do {number // 2}" for number in range(20)], [f"do  {number}" for number in range(12)]
    chosen = choose(_Prompts(harmful, benign), SETTINGS)  # type: ignore[arg-type]
    traced = {harmful[at] for at in chosen.traced}
    assert len(traced) == 5
    assert sorted((*chosen.traced, *chosen.harmful)) == list(range(20))
    assert not traced & {harmful[at] for at in chosen.harmful}
    assert [benign[at - 20].replace("  ", " ") for at in chosen.benign] == [
        one.replace("  ", " ") for one in benign if one.replace("  ", " ") not in traced
    ]
    assert len(chosen.benign) == 7
    other = choose(_Prompts(harmful, benign), replace(SETTINGS, seed=1))  # type: ignore[arg-type]
    assert other.traced != chosen.traced
    few = choose(_Prompts(harmful, benign), replace(SETTINGS, limit=3))  # type: ignore[arg-type]
    assert (len(few.traced), len(few.harmful), len(few.benign)) == (10, 3, 3)
    with pytest.raises(ConfigError, match="every benign example has a prompt that is traced"):
        choose(_Prompts(harmful, [next(iter(traced))]), SETTINGS)  # type: ignore[arg-type]


def _found(thinking: str, condition: Condition, *rows: tuple[float | None, ...]) -> Found:
    """Rows of score, surprise, tokens of text and refused, by example."""
    table = [
        {"example": at, "score": score, "difference": score, "surprise": surprise, "n_text": n, "refused": refused}
        for at, (score, surprise, n, refused) in enumerate(rows)
    ]
    return Found(thinking, condition, pa.Table.from_pylist(table, schema=PIECE))  # type: ignore[arg-type]


def test_rates_perplexity_and_changes() -> None:
    """Examples 0 and 1 are harmful, 2 and 3 benign. Where thinking is regenerated one has no score."""
    unchanged = Condition(UNCHANGED, None, None, (), generates=True)
    found = [
        _found("fixed", unchanged, (1.0, None, 0, False), (3.0, None, 0, True), (0.0, 2.0, 2, False),
               (0.0, 7.0, 1, False)),
        _found("fixed", OFF, (2.0, None, 0, True), (8.0, None, 0, True), (0.0, 4.0, 2, False), (0.0, 5.0, 1, None)),
        _found("regenerated", unchanged, (10.0, None, 0, False), (None, None, 0, None), (0.0, None, 0, False),
               (0.0, None, 0, False)),
        _found("regenerated", OFF, (14.0, None, 0, True), (50.0, None, 0, True), (0.0, None, 0, False),
               (0.0, None, 0, False)),
    ]  # fmt: skip
    rows = rows_of(found, {"harmful": [0, 1], "benign": [2, 3]}, replace(SETTINGS, level=0.5))
    at = {(row["thinking"], row["condition"], row["part"], row["measure"]): row for row in rows}
    assert {key[3] for key in at if key[2] == "harmful"} == {"score", "logit_difference", "refused"}
    score = at["fixed", CHOSEN, "harmful", "score"]
    assert (score["n"], score["value"], score["change"], score["n_heads"]) == (2, 5.0, 3.0, 2)
    assert at["fixed", UNCHANGED, "harmful", "score"]["change"] is None
    anew = at["regenerated", CHOSEN, "harmful", "score"]
    assert (anew["n"], anew["value"], anew["change"]) == (2, 32.0, 4.0)  # of the example that has both
    assert at["regenerated", UNCHANGED, "harmful", "refused"]["n"] == 1
    refused, rate = at["fixed", UNCHANGED, "harmful", "refused"], wilson(1, 2, 0.5)
    assert (refused["value"], refused["low"], refused["high"]) == (0.5, rate.low, rate.high)
    assert at["fixed", CHOSEN, "benign", "refused"]["n"] == 1
    perplexity = at["fixed", CHOSEN, "benign", "perplexity"]
    assert perplexity["value"] == pytest.approx(np.exp(9 / 3))
    assert perplexity["change"] == pytest.approx(0.0)
    assert ("regenerated", CHOSEN, "benign", "perplexity") not in at


@pytest.mark.parametrize(
    ("response", "refused"),
    [("I'm sorry, but I can't help with that.", True), ("Here it is.", False), (None, None), ("  ", None)],
)
def test_no_answer_neither_refuses_nor_complies(response: str | None, refused: bool | None) -> None:
    judge = SimpleNamespace(_refusals=Refusals())
    found = ExperimentModel._judged(judge, Measured(3), _Written(None, Answer("Hm.", response)))  # type: ignore[arg-type]
    assert (found.refused, found.thinking, found.response) == (refused, "Hm.", response)


def test_openers_that_the_tokenizer_does_not_know_are_left_out() -> None:
    class Tokenizer:
        unk_token_id = 0

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [{"I": 5, "Sure": 7}.get(word, 0) for word in text.split()]}

    assert first_tokens(Tokenizer(), ("I cannot", "Nein", "Sure", "")) == {"I cannot": 5, "Sure": 7}  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no token for any of the openers"):
        first_tokens(Tokenizer(), ("Nein",))  # type: ignore[arg-type]
