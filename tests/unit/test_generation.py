"""The parts of generation: noise, roles of new tokens, texts told apart, and that what is sent anywhere pickles."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import gpt2
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from transformers import GPT2LMHeadModel
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cliffstore.corpus.answers import Answer, read_answer, read_any_answer
from cliffstore.corpus.markers import DEFAULT_MARKERS, ThinkMarkers
from cliffstore.errors import GenerationError
from cliffstore.model.generation import Place, Prompt, TextGenerator
from cliffstore.model.identity import ModelSource
from cliffstore.model.sampling import Sampling, gumbel_noise, processors
from cliffstore.publish.completions import Endpoint
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample, Segment
from cliffstore.run.generation import backend
from cliffstore.run.generation.backend import Backend
from cliffstore.run.generation.config import GenerateConfig
from cliffstore.run.generation.job import EndpointSpec, GenerationJob, ModelSpec, Windows, noise_key
from cliffstore.run.generation.plan import Marks, _Planning, own_thinking
from cliffstore.run.generation.positions import RowRoles, relative, role_at_end, roles_of
from cliffstore.schema import ModelIdentity


def splitmix64(state: int) -> int:
    """The published algorithm, in Python's integers: the output for a state that is already advanced."""
    most = (1 << 64) - 1
    z = state & most
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & most
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & most
    return z ^ (z >> 31)


def test_noise_is_splitmix64_over_a_counter() -> None:
    golden = 0x9E3779B97F4A7C15
    key, step = noise_key(7, "an example", 1), 11
    noise = gumbel_noise(torch.tensor([key]), step, 50)[0].double().numpy()
    stream = splitmix64(key + (step + 1) * golden)
    uniform = np.array([((splitmix64(stream + (token + 1) * golden) >> 40) + 0.5) / 2**24 for token in range(50)])
    np.testing.assert_allclose(noise, -np.log(-np.log1p(-uniform)), rtol=1e-5, atol=1e-6)


def test_noise_of_a_row_is_its_own() -> None:
    keys = [noise_key(0, f"example {number}") for number in range(16)]
    together = gumbel_noise(torch.tensor(keys), 3, 1000)
    for row in (0, 7, 15):
        assert torch.equal(gumbel_noise(torch.tensor(keys[row : row + 1]), 3, 1000)[0], together[row])
    others = [noise_key(1, "example 0"), noise_key(0, "example 0", 1), noise_key(0, "example 00")]
    assert not set(others) & set(keys)
    assert not torch.equal(gumbel_noise(torch.tensor(keys), 4, 1000), together)
    correlation = np.corrcoef(np.vstack([together.numpy(), gumbel_noise(torch.tensor(keys), 4, 1000).numpy()]))
    assert np.abs(correlation - np.eye(32)).max() < 0.17  # five standard deviations of 1,000 pairs


def test_noise_is_gumbel_and_draws_follow_the_probabilities() -> None:
    keys = torch.tensor([noise_key(0, str(number)) for number in range(20_000)])
    noise = gumbel_noise(keys, 0, 8)
    assert kstest(noise[:, 5].numpy(), "gumbel_r").pvalue > 1e-3
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0, 1.5])
    scores = logits.repeat(len(keys), 1)
    for sampling in (Sampling(1.0), Sampling(0.7, top_k=5), Sampling(1.3, top_p=0.9)):
        ids = torch.zeros((len(keys), 4), dtype=torch.int64)
        drawn = processors(sampling, [""] * len(keys), keys.tolist(), 4, torch.device("cpu"))(ids, scores.clone())
        wanted = TemperatureLogitsWarper(sampling.temperature)(ids[:1], logits[None].clone())
        wanted = TopKLogitsWarper(sampling.top_k)(ids[:1], wanted) if sampling.top_k else wanted
        wanted = TopPLogitsWarper(sampling.top_p)(ids[:1], wanted) if sampling.top_p < 1 else wanted
        probabilities = torch.softmax(wanted[0], dim=0).double().numpy()
        counts = np.bincount(drawn.argmax(dim=1).numpy(), minlength=8)
        kept = probabilities > 0
        assert counts[~kept].sum() == 0
        assert chisquare(counts[kept], probabilities[kept] / probabilities.sum() * len(keys)).pvalue > 1e-3


def test_every_token_can_be_drawn() -> None:
    """The largest of 2^24 numbers would round to 1: for this key, token and step it is drawn."""
    noise = gumbel_noise(torch.tensor([99]), 0, 35_875)[0]
    assert torch.isfinite(noise).all()
    assert int(noise.argmin()) == 35_874


def test_rows_that_have_ended_stay_within_the_positions_of_the_model() -> None:
    """GPT-2 has a table of positions: a long prompt, which has room for 4 tokens, is beside one with room for 24."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2().config).eval()
    longest = model.config.n_positions
    ids = np.arange(longest - 4, dtype=np.int32) % 50
    prompts = [Prompt("long", ids, limit=4), Prompt("short", ids[:5], limit=24)]
    generator = TextGenerator(model, None, frozenset())  # type: ignore[arg-type]
    together = generator.generate(prompts)
    alone = [generator.generate([one])[0] for one in prompts]
    assert [one.n_tokens for one in together] == [4, 24]
    assert [one.token_ids.tolist() for one in together] == [one.token_ids.tolist() for one in alone]


@pytest.mark.parametrize(("context", "limit"), [(None, 9), (40, 9), (14, 9), (13, 8), (6, 1)])
def test_prompt_and_answer_together_stay_within_the_context(context: int | None, limit: int) -> None:
    config = GenerateConfig(corpus=("c.jsonl",), model="m", output="out.jsonl", max_new_tokens=9)
    row = CorpusRow("a", "Hi", (Message("user", "Hi"),))
    header = np.full(5, SEGMENTS.index(Segment.HEADER), dtype=np.uint8)
    example = RenderedExample(row, np.arange(5, dtype=np.int32), header, 4, "c.jsonl:1")
    assert _Planning(config, Windows(1024, 16), context, Marks())._item(example)["limit"] == limit


def test_whatever_shapes_the_text_is_a_setting_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on from what is there only where these are the same."""
    monkeypatch.setattr(backend, "tokenizer_digest", lambda tokenizer: tokenizer)
    monkeypatch.setattr(backend, "choose_dtype", lambda config, _: config.dtype)

    def settings(template: str = "t", tokenizer: str = "k", weights: str = "w", changes: str = "i", **options: object):
        identity = SimpleNamespace(
            name="m", weights_digest=weights, revision=None, config_digest="c", adapter=SimpleNamespace(digest="a")
        )
        renderer, source = SimpleNamespace(digest=template, tokenizer=tokenizer), SimpleNamespace(identity=identity)
        given = {"corpus": ("c.jsonl",), "model": "m", "output": "out.jsonl", "temperature": 1.0, **options}
        here = Backend(source, renderer, None, None, SimpleNamespace(digest=changes))  # type: ignore[arg-type]
        return here.settings(GenerateConfig(**given))

    marks = {"think_open": "<a>", "think_close": "</a>"}
    for others in (
        {"max_new_tokens": 9}, {"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 5}, {"seed": 1}, {"samples": 2},
        {"stop_at_thinking": True}, {"regenerate_thinking": True}, {"batch_size": 3}, marks, {"dtype": "float16"},
        {"template": "u"}, {"tokenizer": "l"}, {"weights": "x"}, {"changes": "j"},
    ):  # fmt: skip
        assert settings(**others) != settings(), others
    for same in ({"output": "other.jsonl"}, {"device": "cuda"}, {"executor": "local"}):
        assert settings(**same) == settings(), same


def test_logits_that_are_no_numbers_are_an_error() -> None:
    scores = torch.zeros((2, 4))
    scores[1, 2] = torch.nan
    with pytest.raises(GenerationError, match="example second") as caught:
        processors(None, ["first", "second"], [0, 0], 1, torch.device("cpu"))(torch.zeros((2, 1)), scores)
    assert caught.value.final


@pytest.mark.parametrize(
    ("text", "is_open", "told"),
    [
        ("<think>\nHm.\n</think>\n\nHi.", False, Answer("Hm.", "Hi.")),
        ("Hm.\n</think>\n\nHi.", True, Answer("Hm.", "Hi.")),
        ("Hm.\n</think>\n\nHi.", False, Answer(None, "Hm.\n</think>\n\nHi.")),
        ("Is <think> a tag?\n</think>\n\nYes.", True, Answer("Is <think> a tag?", "Yes.")),
        ("<think>\nIs <think> a tag?\n</think>\n\nYes.", True, Answer("Is <think> a tag?", "Yes.")),
        ("\n</think>\n\nHi.", True, Answer(None, "Hi.")),
        ("Hm, and", True, Answer("Hm, and", None)),
        ("<think>\nHm, and", False, Answer("Hm, and", None)),
        ("Hi.", False, Answer(None, "Hi.")),
        ("<think>\n\n</think>\n\nHi.", False, Answer(None, "Hi.")),
        ("", False, Answer(None, None)),
        ("", True, Answer(None, None)),
    ],
)
def test_text_of_a_model_is_told_apart(text: str, is_open: bool, told: Answer) -> None:
    assert read_answer(text, DEFAULT_MARKERS, is_open=is_open) == told


def test_model_without_thinking_has_none() -> None:
    assert read_answer("<think>a</think>b", None, is_open=False) == Answer(None, "<think>a</think>b")
    assert read_any_answer("Type </think>\n\nnow") == Answer(None, "Type </think>\n\nnow")
    assert read_any_answer("Hm.\n</think>\n\nHi.") == Answer("Hm.", "Hi.")


MARKERS = (DEFAULT_MARKERS, ThinkMarkers("[THINK]", "[/THINK]"))


@given(
    st.sampled_from(MARKERS),
    st.booleans(),
    st.text("ab \n", min_size=1).filter(lambda text: text.strip() and not text.endswith("\n")),
    st.text("ab .", min_size=1),
)
def test_roles_of_new_tokens_are_those_of_the_whole_text(
    markers: ThinkMarkers, is_open: bool, thinking: str, response: str
) -> None:
    """Character by character: only where a mark begins is its role not known yet."""
    open_ = "" if is_open else markers.open
    pieces = [(open_, Segment.THINK_OPEN), (thinking, Segment.THINK), (markers.close, Segment.THINK_CLOSE)]
    text, wanted = "", []
    for piece, role in [*pieces, (response.lstrip("\n"), Segment.RESPONSE)]:
        text += piece
        wanted += [role] * len(piece)
    row = RowRoles([SEGMENTS.index(Segment.HEADER)] * 3, 2, markers, is_open)
    for character in text:
        row.read(ord(character), lambda ids: "".join(map(chr, ids)))
    found = [SEGMENTS[code] for code in row.segments[3:]]
    begins = len(open_) + len(thinking)
    lead = len(markers.close) - len(markers.close.lstrip()) + 1
    unknown = set(range(begins, begins + lead))
    # white space that the mark has may also begin the thinking
    unknown |= set(range(len(open_), len(open_) + len(thinking) - len(thinking.lstrip())))
    differ = {place for place, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other}
    assert differ <= unknown
    assert row.decision == 3 + begins + len(markers.close) - 1
    (decision,) = np.flatnonzero(row.holds("decision"))
    assert decision == row.decision


def test_decision_that_is_not_there_yet_chooses_nothing() -> None:
    row = RowRoles([SEGMENTS.index(Segment.HEADER)] * 3, 2, DEFAULT_MARKERS, False)
    for choice in ("decision", "last:4", "-3..0", "decision,last:2"):
        assert not row.holds(choice).any()
    assert row.holds("decision,stride:2").tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("tail", "is_fixed", "decision"), [("</think>\n\n", False, 10), ("<think>\n", False, None), ("Hm", True, 10)]
)
def test_decision_is_in_a_prompt_whose_thinking_has_ended(tail: str, is_fixed: bool, decision: int | None) -> None:
    text = tail.rjust(11)
    place = Place(bytes([SEGMENTS.index(Segment.HEADER)] * 11), 10, is_open=False, is_fixed=is_fixed)
    prompt = Prompt("a", np.array([ord(one) for one in text], dtype=np.int32), 4, place=place)
    row = roles_of(prompt, DEFAULT_MARKERS, lambda ids: "".join(map(chr, ids)))
    assert (row.is_decided, np.flatnonzero(row.holds("decision")).tolist()) == (
        (False, []) if decision is None else (True, [decision])
    )


def test_choices_that_need_a_decision() -> None:
    assert relative(["all", "template,think", "stride:2", "last:2", "-3..0", "decision,user"]) == [
        "last:2", "-3..0", "decision,user",
    ]  # fmt: skip


def test_thinking_that_a_row_brings_along() -> None:
    """A model whose template opens the thinking writes its end alone: what it wrote is a corpus of its thinking."""
    rollout = CorpusRow("a", "Hello", (Message("user", "Hello"),), response="Hm.\n</think>\n\nHi.")
    assert own_thinking(rollout, Marks(is_open=True)) == "Hm."
    assert own_thinking(rollout, Marks()) is None
    said = replace(rollout, response="<hm>Hm.</hm>Hi.")
    assert own_thinking(said, Marks(ThinkMarkers("<hm>", "</hm>"))) == "Hm."
    assert own_thinking(replace(said, thinking="So."), Marks()) == "So."


def test_thinking_that_is_fixed_leaves_the_decision_in_the_prompt() -> None:
    row = RowRoles([SEGMENTS.index(Segment.THINK), SEGMENTS.index(Segment.THINK_CLOSE)], 1, None, False)
    row.read(5, lambda ids: "never asked")
    assert row.holds("decision").tolist() == [False, True, False]
    assert row.holds("response").tolist() == [False, False, True]
    assert row.holds("-1..0").tolist() == [True, True, False]
    assert role_at_end("<thi", DEFAULT_MARKERS, is_open=False) == Segment.THINK_OPEN


def test_what_is_sent_to_workers_pickles() -> None:
    identity = ModelIdentity(
        name="m", revision=None, config_digest="0", weights_digest=None, model_type="llama", n_layers=1, d_model=4,
        n_heads=1, d_head=4,
    )  # fmt: skip
    job = GenerationJob(
        store="s", windows=Windows(1024, 16), max_new_tokens=4, temperature=0.0, top_p=1.0, top_k=0, seed=0,
        stop_at_thinking=False, markers=DEFAULT_MARKERS, end_of_turn="<|im_end|>", storage_options={"a": "b"},
    )  # fmt: skip
    spec = ModelSpec(ModelSource("m", None, identity, None, "float32"), "float32", "cpu")
    for sent in (job, spec, EndpointSpec(Endpoint("http://host/v1", "m"), 3)):
        assert pickle.loads(pickle.dumps(sent)) == sent  # noqa: S301
