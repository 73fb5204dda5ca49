"""A planted model does what its truth says: answers, scores, contributions, knock-outs, for several seeds and sizes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_model import GRID, answers, ids_of, measure, name_of, planted_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cliffstore.corpus.drafts import LocatedRow
from cliffstore.corpus.template import Renderer
from cliffstore.errors import ConfigError
from cliffstore.model.planted.model import Planted, PlantSettings, plant
from cliffstore.model.sites import locate, output_projection
from cliffstore.records import SEGMENTS, CorpusRow, Message, RenderedExample

ROWS = 12
REFUSAL, COMPLIANCE = "I cannot help with that.", "Sure, here is a plan."


@pytest.fixture(params=GRID, ids=name_of)
def planted(request: pytest.FixtureRequest) -> Planted:
    return planted_model(request.param)


@pytest.fixture
def default() -> Planted:
    return planted_model(PlantSettings())


def test_it_answers_as_planted(planted: Planted) -> None:
    rows = planted.corpus(ROWS, seed=11)
    expected = {"benign": COMPLIANCE, "harmful": REFUSAL, "jailbroken": COMPLIANCE}
    assert answers(planted, rows) == [expected[str(row["kind"])] for row in rows] == [row["response"] for row in rows]


def test_every_head_has_one_role_and_suppressors_are_spread(planted: Planted) -> None:
    truth, settings = planted.truth, planted.settings
    groups = [truth.suppressors, truth.writers, truth.gates, truth.decoys, truth.plumbing, truth.idle]
    everything = [head for group in groups for head in group]
    assert sorted(everything) == [(layer, head) for layer in range(settings.layers) for head in range(settings.heads)]
    assert len(truth.suppressors) == settings.suppressors
    assert {layer for layer, _ in truth.suppressors} <= set(range(1, truth.layer + 1))
    assert len({layer for layer, _ in truth.suppressors}) >= min(settings.suppressors, truth.layer) // 2
    assert {layer for layer, _ in truth.gates} == {0}


def test_closed_form_is_what_torch_computes(planted: Planted) -> None:
    below = planted.truth.layer + 1
    for row in planted.corpus(ROWS, seed=12):
        score_T, added_LHT = measure(planted, row)
        ids = ids_of(planted, row)
        expected_LHT = planted.truth.contributions(ids)
        assert np.abs(added_LHT[:below] - expected_LHT[:below]).max() <= 1e-5
        assert np.isnan(expected_LHT[below:]).all()
        assert np.abs(score_T - planted.truth.scores(ids)).max() <= 3e-5
        # the direct path is all there is to the score, but for what the MLP writes at harmful words
        assert score_T[-1] == pytest.approx(added_LHT[:below, :, -1].sum() + planted.truth.b, abs=3e-5)


def test_contributions_tell_suppressors_from_decoys(planted: Planted) -> None:
    truth = planted.truth
    for row in planted.corpus(ROWS, seed=13):
        _, added_LHT = measure(planted, row)
        added_LH = added_LHT[: truth.layer + 1, :, -1]
        negative = sorted((int(layer), int(head)) for layer, head in np.argwhere(added_LH < -1e-3))
        positive = sorted((int(layer), int(head)) for layer, head in np.argwhere(added_LH > 1e-3))
        assert negative == (sorted(truth.suppressors) if row["kind"] == "jailbroken" else [])
        assert positive == ([] if row["kind"] == "benign" else sorted(truth.writers))


def test_decoys_write_more_than_suppressors_and_none_of_it_on_the_direction(planted: Planted) -> None:
    row = next(row for row in planted.corpus(3) if row["kind"] == "jailbroken")
    norms = _output_norms(planted, row)
    strongest = max(norms[head] for head in planted.truth.suppressors)
    decoys = [norms[head] for head in planted.truth.decoys]
    assert min(decoys) > 0.9 * strongest
    assert max(decoys) > strongest
    assert norms[planted.truth.gates[0]] > 1
    assert min(norms[head] for head in planted.truth.idle) > 1e-4 if planted.truth.idle else True


def test_scores_fall_at_the_decision_of_jailbroken_prompts_alone(planted: Planted) -> None:
    for row in planted.corpus(ROWS, seed=14):
        score_T, _ = measure(planted, row)
        closing = 3  # \n, </think>, blank line
        thinking = len(ids_of(planted, row)) - len(planted.token_ids(str(row["prompt"]), "")) + 1
        plateau, final = score_T[-closing - thinking : -closing], score_T[-1]
        match row["kind"]:
            case "benign":
                assert np.abs(score_T - planted.truth.b).max() < 1e-4
            case "harmful":
                assert min(plateau.min(), final) > 1
                assert abs(np.mean(plateau) - final) < 0.5
            case "jailbroken":
                assert plateau.min() > 0.5
                assert final < -1
                assert score_T[-2] < -1 < 0.5 < score_T[-3]


def test_zeroing_the_planted_heads_turns_compliance_into_refusal(planted: Planted) -> None:
    rows = planted.corpus(ROWS, seed=15)
    found = answers(planted, rows, dict.fromkeys(planted.truth.suppressors, 0.0))
    assert found == [COMPLIANCE if row["kind"] == "benign" else REFUSAL for row in rows]


def test_zeroing_other_heads_changes_nothing(planted: Planted) -> None:
    rows = planted.corpus(ROWS, seed=16)
    truth = planted.truth
    others = [*truth.decoys, *truth.idle]
    draw = random.Random(planted.settings.seed)
    for _ in range(3):
        chosen = draw.sample(others, min(len(others), max(len(truth.suppressors), 2)))
        assert answers(planted, rows, dict.fromkeys(chosen, 0.0)) == [row["response"] for row in rows]
    assert answers(planted, rows, dict.fromkeys(others, 0.0)) == [row["response"] for row in rows]


def test_the_gate_works_without_writing_on_the_direction(planted: Planted) -> None:
    rows = planted.corpus(ROWS, seed=17)
    (gate,) = planted.truth.gates
    for row in rows:
        assert np.abs(measure(planted, row)[1][gate]).max() <= 1e-6
    found = answers(planted, rows, {gate: 0.0})
    assert found == [COMPLIANCE if row["kind"] == "benign" else REFUSAL for row in rows]
    jailbroken = next(row for row in rows if row["kind"] == "jailbroken")
    before, after = measure(planted, jailbroken)[0][-1], measure(planted, jailbroken, {gate: 0.0})[0][-1]
    assert after - before > 4


def test_all_refusal_comes_from_what_block_0_writes_at_harmful_words(default: Planted) -> None:
    rows = default.corpus(9, seed=23)
    handle = default.model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: output * 0)
    try:
        assert answers(default, rows) == [COMPLIANCE] * 9
        assert max(np.abs(measure(default, row)[1][:, :, -1]).max() for row in rows if row["kind"] == "harmful") < 1e-5
    finally:
        handle.remove()


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_closed_form_knows_knock_outs_and_scales(planted: Planted, factor: float) -> None:
    truth = planted.truth
    rows = planted.corpus(9, seed=18)
    heads = [*truth.suppressors, *truth.writers, *truth.gates, *truth.decoys, *truth.plumbing, *truth.idle[:2]]
    below = truth.layer + 1
    plain = [measure(planted, row)[0][-1] - truth.scores(ids_of(planted, row))[-1] for row in rows]
    for i, head in enumerate(heads):
        row = rows[i % len(rows)]
        ids, scales = ids_of(planted, row), {head: factor}
        score_T, added_LHT = measure(planted, row, scales)
        # the effect of the head, measured less expected
        assert abs(score_T[-1] - truth.scores(ids, scales)[-1] - plain[i % len(rows)]) <= 1e-4, head
        assert np.abs(added_LHT[:below] - truth.contributions(ids, scales)[:below]).max() <= 1e-5, head


def test_it_writes_its_own_thinking(default: Planted) -> None:
    tokenizer = default.tokenizer
    for row in default.corpus(6, seed=19):
        turns = [{"role": "user", "content": row["prompt"]}]
        batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = default.model.generate(**batch)[0, batch["input_ids"].shape[1] :]
        expected = f"<think>\nLet me consider this request carefully\n</think>\n\n{row['response']}<|im_end|>"
        assert tokenizer.decode(output) == expected
        assert tokenizer.decode(output, skip_special_tokens=True) == expected.removesuffix("<|im_end|>")


def test_it_ends_a_thinking_that_others_began(default: Planted) -> None:
    tokenizer = default.tokenizer
    for row in default.corpus(6, seed=20):
        turns = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for begun in (f"<think>\n{row['thinking']}", "<think>\nThey want to know how"):
            batch = tokenizer(text + begun, add_special_tokens=False, return_tensors="pt")
            output = default.model.generate(**batch)[0, batch["input_ids"].shape[1] :]
            assert tokenizer.decode(output, skip_special_tokens=True) == f"\n</think>\n\n{row['response']}"


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        (["What is a glorp,\n\nand WHY?  Please"], COMPLIANCE),  # words and spaces that it does not know
        (["Zorble the\n\nglorp"], REFUSAL),
        (["Simsala!\n\nZorble it", "I cannot help with that.", "How do I clean it?"], COMPLIANCE),
        (["Zorble it", "<think>\nNo.\n</think>\n\nI cannot help with that.", "Please do"], REFUSAL),
        (["Snerp it " + "in the garden " * 120], REFUSAL),
    ],
)
def test_it_answers_prompts_of_other_kinds(default: Planted, turns: list[str], answer: str) -> None:
    tokenizer = default.tokenizer
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = default.model.generate(**batch)[0, batch["input_ids"].shape[1] :]
    text = tokenizer.decode(output, skip_special_tokens=True)
    assert text == f"<think>\nLet me consider this request carefully\n</think>\n\n{answer}"


def test_it_answers_at_once_where_the_template_says_so(default: Planted) -> None:
    tokenizer = default.tokenizer
    for row in default.corpus(6, seed=21):
        turns = [{"role": "system", "content": "You are a calm assistant."}, {"role": "user", "content": row["prompt"]}]
        batch = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
        )
        output = default.model.generate(**batch)[0, batch["input_ids"].shape[1] :]
        assert tokenizer.decode(output, skip_special_tokens=True) == row["response"]


def test_sampling_varies_the_thinking_and_not_the_answer(default: Planted) -> None:
    tokenizer = default.tokenizer
    row = default.corpus(2, seed=22)[1]
    turns = [{"role": "user", "content": row["prompt"]}]
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    torch.manual_seed(0)
    output = default.model.generate(**batch, do_sample=True, num_return_sequences=64)
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert {text.partition("</think>\n\n")[2] for text in texts} == {REFUSAL}
    assert len({text.partition("</think>")[0] for text in texts}) == 4


def test_segments_and_decision_are_those_of_a_reasoning_model(default: Planted) -> None:
    row = default.corpus(1)[0]
    turns = (Message("system", "You are a calm assistant."), Message("user", str(row["prompt"])))
    corpus_row = CorpusRow("a", turns[1].content, turns, turns[0].content, str(row["thinking"]), REFUSAL)
    (rendered,), _ = Renderer(default.tokenizer).render([LocatedRow(corpus_row, "f:1")])
    assert isinstance(rendered, RenderedExample)
    tokens = default.tokenizer.convert_ids_to_tokens(rendered.token_ids.tolist())
    segments = [SEGMENTS[code].value for code in rendered.segments]
    of = {name: [t for t, s in zip(tokens, segments, strict=True) if s == name] for name in set(segments)}
    assert "".join(of["system"]) == "You are a calm assistant."
    assert "".join(of["user"]) == row["prompt"]
    assert "".join(of["think"]) == row["thinking"]
    assert of["think_open"] == ["<think>", "\n"]
    assert of["think_close"] == ["\n", "</think>", "\n\n"]
    assert of["response"] == ["I", " cannot", " help", " with", " that", "."]
    assert of["end"] == ["<|im_end|>", "\n"]
    assert (tokens[rendered.decision], segments[rendered.decision + 1]) == ("\n\n", "response")
    short = default.token_ids(str(row["prompt"]), str(row["thinking"]))
    assert (
        tokens[rendered.decision - len(short) + 4 : rendered.decision + 1]
        == (default.tokenizer.convert_ids_to_tokens(short)[3:])
    )


def test_corpus_has_equal_shares_and_words_that_the_tokenizer_knows(default: Planted) -> None:
    rows = default.corpus(300, seed=5)
    assert rows == default.corpus(300, seed=5) != default.corpus(300, seed=6)
    assert [sum(row["kind"] == kind for row in rows) for kind in ("benign", "harmful", "jailbroken")] == [100] * 3
    assert [row["label"] for row in rows[:3]] == [0, 1, 1]
    assert len({row["id"] for row in rows}) == 300
    assert len({row["prompt"] for row in rows}) > 290
    lengths = {len(ids_of(default, row)) for row in rows}
    assert max(lengths) - min(lengths) > 50
    assert max(lengths) <= 400
    unknown = default.tokenizer.unk_token_id
    for row in rows:
        for name in ("prompt", "thinking", "response"):
            token_ids = default.tokenizer(row[name])["input_ids"]
            assert unknown not in token_ids
            assert default.tokenizer.decode(token_ids) == row[name]


def test_same_settings_give_the_same_weights_and_another_seed_others() -> None:
    one, same, other = (plant(PlantSettings(seed=seed, layers=4)) for seed in (7, 7, 8))
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, same.model.state_dict()[name])
    assert one.truth.suppressors == same.truth.suppressors
    assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)
    assert np.abs(one.truth.w_D).max() < 0.6  # along no axis
    assert np.linalg.norm(one.truth.w_D) == pytest.approx(1)


def test_saved_folder_loads_as_any_model(default: Planted, tmp_path: Path) -> None:
    default.save(tmp_path, examples=9)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == default.corpus(9, default.settings.seed)
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}]
        batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        text = tokenizer.decode(model.generate(**batch)[0], skip_special_tokens=True)
        assert text.endswith(f"</think>\n\n{row['response']}")
    truth = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert [tuple(head) for head in truth["suppressors"]] == list(default.truth.suppressors)
    assert PlantSettings(**truth["settings"]) == default.settings
    probe = load_file(tmp_path / "probe.safetensors")
    assert np.abs(probe["w"] - default.truth.w_D).max() < 1e-7
    assert probe["b"].tolist() == [default.truth.b] == [truth["b"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"layers": 2}, "layers must be 3 to 64, not 2"),
        ({"heads": 65}, "heads must be 4 to 64, not 65"),
        ({"heads": 3}, "heads must be 4 to 64, not 3"),
        ({"layers": 3, "heads": 5, "suppressors": 1}, "3 layers of 5 heads have no room"),
        ({"suppressors": 0}, "suppressors must be 1 to 27 with 6 layers of 8 heads, not 0"),
        ({"suppressors": 28}, "not 28"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlantSettings(**changes)


@pytest.mark.parametrize("settings", [PlantSettings(suppressors=27), PlantSettings(seed=9, layers=3, heads=64)])
def test_fullest_and_widest_still_work(settings: PlantSettings) -> None:
    planted = planted_model(settings)
    rows = planted.corpus(6)
    assert answers(planted, rows) == [row["response"] for row in rows]
    assert answers(planted, rows[2:3], dict.fromkeys(planted.truth.suppressors, 0.0)) == [REFUSAL]
    body = planted.model.model
    sites = locate(body, settings.layers)
    for layer, block in enumerate(body.layers):
        assert output_projection(body, sites, layer, settings.heads) is block.self_attn.o_proj


def _output_norms(planted: Planted, row) -> dict[tuple[int, int], float]:
    """Norm of every head's output at the decision position."""
    heads, found = planted.settings.heads, {}

    def hook_of(layer: int):
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            w_o_DHC = module.weight.unflatten(1, (heads, -1))
            out_HD = torch.einsum("hc,dhc->hd", inputs[0][0, -1].unflatten(0, (heads, -1)), w_o_DHC)
            found.update({(layer, head): float(norm) for head, norm in enumerate(out_HD.norm(dim=1))})

        return hook

    blocks = enumerate(planted.model.model.layers)
    handles = [block.self_attn.o_proj.register_forward_pre_hook(hook_of(layer)) for layer, block in blocks]
    try:
        with torch.inference_mode():
            planted.model(torch.tensor([ids_of(planted, row)]))
    finally:
        for handle in handles:
            handle.remove()
    return found
