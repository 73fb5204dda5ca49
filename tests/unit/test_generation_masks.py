"""Interventions while text is generated: padded, in batches and with a cache, as each text step by step by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, WIDTH
from transformers import AutoModelForCausalLM, PreTrainedModel

from cliffstore.errors import ExtractionError
from cliffstore.model.interventions import ablate, intervene, scale_heads, steer
from cliffstore.model.pass_masks import positions_in_generation, positions_of_pass

NEW = 6
RANDOM = np.random.default_rng(7)
VECTOR = RANDOM.normal(size=WIDTH).astype(np.float32)
PROMPTS = [RANDOM.integers(3, VOCABULARY, n).tolist() for n in (7, 3, 11)]
WORDS = [{"some": RANDOM.random(len(prompt)) < 0.5, "generated": np.zeros(len(prompt), bool)} for prompt in PROMPTS]

Make = Callable[[PreTrainedModel], AbstractContextManager[None]]
MAKE: dict[str, Make] = {
    "heads at some of the prompt": lambda model: scale_heads(
        model, {(1, 0): 0, (1, 2): 0, (0, 1): 2}, positions="some", keep_norm=True
    ),
    "direction out of what is generated": lambda model: ablate(model, VECTOR, positions="generated"),
    "vector added to every third token": lambda model: steer(
        model, VECTOR, site="resid_pre", layers=[1], factor=-2, positions="thirds"
    ),
    "direction out everywhere": lambda model: ablate(model, VECTOR),
}


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[request.param]().config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.mul_(5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def is_third(ids_BT: torch.Tensor) -> torch.Tensor:
    return ids_BT % 3 == 0


def decode(ids_BT: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {"generated": torch.ones_like(ids_BT).bool(), "thirds": is_third(ids_BT)}


def words_of(number: int) -> dict[str, np.ndarray]:
    return {**WORDS[number], "thirds": is_third(torch.tensor(PROMPTS[number])).numpy()}


def by_itself(model: PreTrainedModel, make: Make, number: int) -> tuple[list[int], torch.Tensor]:
    """Return the new tokens and the logits behind each, without a cache: a whole pass for each of them."""
    ids, words, logits = list(PROMPTS[number]), words_of(number), []
    with torch.inference_mode(), make(model):
        for n_new in range(NEW):
            masks = {
                "some": [*words["some"], *[False] * n_new],
                "generated": [*words["generated"], *[True] * n_new],
                "thirds": [one % 3 == 0 for one in ids],
            }
            with positions_of_pass({word: torch.tensor([mask]) for word, mask in masks.items()}):
                logits.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
            ids.append(int(logits[-1].argmax()))
    return ids[len(PROMPTS[number]) :], torch.stack(logits)


def generate(
    model: PreTrainedModel, prompts: list[list[int]], side: str = "left", **options: object
) -> tuple[list[list[int]], torch.Tensor]:
    width = max(map(len, prompts))
    ids_BT, mask_BT = (torch.zeros(len(prompts), width, dtype=torch.long) for _ in range(2))
    for line, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        ids_BT[line, place], mask_BT[line, place] = torch.tensor(prompt), 1
    found = model.generate(
        ids_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True,
        output_logits=True, **options,
    )  # fmt: skip
    return found.sequences[:, width:].tolist(), torch.stack(found.logits, 1)


@pytest.mark.parametrize("name", MAKE)
def test_a_batch_generates_what_each_prompt_does_by_itself(model: PreTrainedModel, name: str) -> None:
    expected = [by_itself(model, MAKE[name], number) for number in range(len(PROMPTS))]
    plain, _ = generate(model, PROMPTS)
    for numbers in ((0, 1, 2), (1,), (2, 0)):
        prompts = [PROMPTS[number] for number in numbers]
        masks = [words_of(number) for number in numbers]
        with MAKE[name](model), positions_in_generation(model, masks, decode):
            tokens, logits = generate(model, prompts)
        for line, number in enumerate(numbers):
            assert tokens[line] == expected[number][0]
            right = expected[number][1]
            assert float((logits[line] - right).norm(dim=-1).max() / right.norm(dim=-1).max()) <= 1e-5
    assert any(one[0] != other for one, other in zip(expected, plain, strict=True))
    assert generate(model, PROMPTS)[0] == plain


def test_without_a_reader_only_generated_acts_on_new_tokens(model: PreTrainedModel) -> None:
    expected = [by_itself(model, MAKE["direction out of what is generated"], number)[0] for number in range(3)]
    with ablate(model, VECTOR, positions="generated"), positions_in_generation(model, WORDS):
        assert generate(model, PROMPTS)[0] == expected


def test_samples_of_a_prompt_stand_side_by_side(model: PreTrainedModel) -> None:
    make = MAKE["heads at some of the prompt"]
    expected = [by_itself(model, make, number)[0] for number in (0, 1)]
    with make(model), positions_in_generation(model, WORDS[:2]):
        tokens, _ = generate(model, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    assert tokens == [expected[0], expected[0], expected[1], expected[1]]


def test_masks_that_do_not_fit_are_refused(model: PreTrainedModel) -> None:
    n_hooks = len(model._forward_pre_hooks)
    with (
        pytest.raises(ExtractionError, match="3 lines does not fit the masks of 2 prompts"),
        ablate(model, VECTOR, positions="some"),
        positions_in_generation(model, WORDS[:2]),
    ):
        generate(model, PROMPTS)
    with pytest.raises(ExtractionError, match="same words"), positions_in_generation(model, [WORDS[0], {}]):
        pass
    with (
        pytest.raises(ExtractionError, match="'thirds'"),
        ablate(model, VECTOR, positions="thirds"),
        positions_in_generation(model, WORDS),
    ):
        generate(model, PROMPTS)
    assert len(model._forward_pre_hooks) == n_hooks


def test_parts_are_found_while_generation_is_followed(model: PreTrainedModel) -> None:
    """A context that is entered within another one runs its sample forward past the masks of the prompts."""
    with positions_in_generation(model, WORDS), ablate(model, VECTOR, positions="some"), intervene(model, []):
        generate(model, PROMPTS)
