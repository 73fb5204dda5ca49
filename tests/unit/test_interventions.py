"""Interventions on tiny models of several architectures: alone, beside others, padded, nested, and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, WIDTH, heads_of, names_of
from transformers import PreTrainedModel

from cliffstore.errors import ExtractionError, ModelError
from cliffstore.model.interventions import ablate, intervene, scale_heads, steer
from cliffstore.model.pass_masks import positions_of_pass
from cliffstore.schema import DirectionAblation, HeadFactors, HeadScaling, Interventions, Steering, vector_text

LIMIT = 1e-5
NAMES = ("llama", "qwen3", "gemma3", "gpt2")
RANDOM = np.random.default_rng(5)
VECTOR = RANDOM.normal(size=WIDTH).astype(np.float32)
OTHER = RANDOM.normal(size=WIDTH).astype(np.float32)
LINES = [RANDOM.integers(3, VOCABULARY, n).tolist() for n in (9, 4, 13, 1)]
CHOSEN = [RANDOM.random(len(line)) < 0.5 for line in LINES]

Make = Callable[[PreTrainedModel, str], AbstractContextManager[None]]


def _channels(model: PreTrainedModel) -> dict[tuple[int, int], np.ndarray]:
    d_head = heads_of(model).d_head
    return {(0, 1): np.linspace(0, 2, d_head), (1, 3): np.linspace(-1, 1, d_head)}


MAKE: dict[str, Make] = {
    "heads off": lambda model, at: scale_heads(model, {(0, 1): 0, (1, 0): 0, (1, 3): 0.5}, positions=at),
    "heads off, norm kept": lambda model, at: scale_heads(
        model, {(0, 1): 0, (1, 0): 2, (1, 3): 0}, positions=at, keep_norm=True
    ),
    "channels": lambda model, at: scale_heads(model, _channels(model), positions=at),
    "channels, norm kept": lambda model, at: scale_heads(model, _channels(model), positions=at, keep_norm=True),
    "direction out everywhere": lambda model, at: ablate(model, VECTOR, positions=at),
    "direction out of one": lambda model, at: ablate(model, VECTOR, sites=["attn_out"], layers=[1], positions=at),
    "direction out, norm kept": lambda model, at: ablate(
        model, VECTOR, sites=["resid_pre", "mlp_out"], layers=[0, 2], positions=at, keep_norm=True
    ),
    **{
        f"vector added to {site}": lambda model, at, site=site: steer(
            model, VECTOR, site=site, layers=[1], factor=-1.5, positions=at
        )
        for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    },
    "vector added, norm kept": lambda model, at: steer(
        model, VECTOR, site="resid_pre", layers=[1, 2], positions=at, keep_norm=True
    ),
}


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    with torch.inference_mode():
        yield ARCHITECTURES[request.param]()


def padded(lines: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask [B, T]."""
    width = max(map(len, lines))
    ids_BT, mask_BT = (torch.zeros(len(lines), width, dtype=torch.long) for _ in range(2))
    for number, line in enumerate(lines):
        place = slice(0, len(line)) if side == "right" else slice(width - len(line), width)
        ids_BT[number, place], mask_BT[number, place] = torch.tensor(line), 1
    return ids_BT, mask_BT


def run(model: PreTrainedModel, lines: list[list[int]], chosen: list[np.ndarray], side: str) -> list[torch.Tensor]:
    """Return the last hidden states of each line, without its padding."""
    ids_BT, mask_BT = padded(lines, side)
    some_BT, _ = padded([one.astype(int).tolist() for one in chosen], side)
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    with positions_of_pass({"some": some_BT.bool()}):
        hidden_BTD = model(ids_BT, attention_mask=mask_BT, position_ids=position_BT, use_cache=False).last_hidden_state
    return [hidden_BTD[number][mask_BT[number].bool()] for number in range(len(lines))]


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest |found - expected| / |expected| of a vector."""
    pairs = zip(found, expected, strict=True)
    return max(float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max()) for one, other in pairs)


@pytest.mark.parametrize("at", ["all", "some"])
@pytest.mark.parametrize("name", MAKE)
def test_alone_or_in_a_batch_with_any_padding(model: PreTrainedModel, name: str, at: str) -> None:
    """A line's vectors are those that it has alone; it is changed where it should be; afterwards all is as before."""
    before = run(model, LINES, CHOSEN, "right")
    with MAKE[name](model, at):
        alone = [run(model, [line], [some], "right")[0] for line, some in zip(LINES, CHOSEN, strict=True)]
        for side in ("right", "left"):
            assert worst(run(model, LINES, CHOSEN, side), alone) <= LIMIT, side
        reordered = run(model, LINES[::-1], CHOSEN[::-1], "left")[::-1]
        assert worst(reordered, alone) <= LIMIT
    plain = [run(model, [line], [some], "right")[0] for line, some in zip(LINES, CHOSEN, strict=True)]
    for line, some, one, other in zip(LINES, CHOSEN, alone, plain, strict=True):
        first = int(np.flatnonzero(some)[0]) if some.any() else len(line)
        begin = 0 if at == "all" else first
        assert torch.equal(one[:begin], other[:begin])
        if begin < len(line):
            assert float((one[begin] - other[begin]).norm() / other[begin].norm()) > 1e-3
    assert all(torch.equal(one, other) for one, other in zip(run(model, LINES, CHOSEN, "right"), before, strict=True))


def values_at(model: PreTrainedModel, context: AbstractContextManager[None]) -> dict[str, torch.Tensor]:
    """Return what flows at the sites of an architecture inside a context, read by hooks under its own names."""
    names, found = names_of(model), {}
    blocks = model.get_submodule(names.blocks)
    with context:
        handles = []
        for layer, block in enumerate(blocks):
            for site, module in (("attn_out", names.attention), ("mlp_out", names.mlp), ("resid_post", "")):
                name = f"{site}/{layer}"
                handles.append(
                    block.get_submodule(module).register_forward_hook(
                        lambda _m, _i, out, name=name: found.update({name: out[0] if isinstance(out, tuple) else out})
                    )
                )
            for site, module in (("resid_pre", ""), ("z", names.projection)):
                name = f"{site}/{layer}"
                handles.append(
                    block.get_submodule(module).register_forward_pre_hook(
                        lambda _m, inputs, name=name: found.update({name: inputs[0]})
                    )
                )
        try:
            model(torch.tensor([LINES[2]]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    return found


def test_an_ablated_direction_is_gone_from_every_site_that_is_asked_for(model: PreTrainedModel) -> None:
    n_layers = model.config.num_hidden_layers
    unit = torch.tensor(VECTOR / np.linalg.norm(VECTOR))
    found = values_at(model, ablate(model, VECTOR))
    for layer in range(n_layers):
        for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            h = found[f"{site}/{layer}"]
            assert float((h @ unit).abs().max() / h.norm(dim=-1).max()) <= 1e-6, (site, layer)
    found = values_at(model, ablate(model, VECTOR, sites=["mlp_out"], layers=[1]))
    along = {name: float((h @ unit).abs().max() / h.norm(dim=-1).max()) for name, h in found.items() if "z" not in name}
    assert [name for name, share in along.items() if share <= 1e-6] == ["mlp_out/1"]


def test_heads_are_scaled_before_the_output_projection(model: PreTrainedModel) -> None:
    """What the projection receives is the old z, head by head times its factor, each token at its old norm."""
    heads = heads_of(model)
    old = values_at(model, intervene(model, []))["z/1"].unflatten(-1, (heads.n_heads, heads.d_head))
    factors = {(1, 0): 0.0, (1, 2): 1.5}
    expected = old.clone()
    expected[..., 0, :] = 0
    expected[..., 2, :] *= 1.5
    found = values_at(model, scale_heads(model, factors))["z/1"]
    torch.testing.assert_close(found, expected.flatten(-2), rtol=1e-6, atol=1e-6)
    kept = values_at(model, scale_heads(model, factors, keep_norm=True))["z/1"]
    ratio = old.flatten(-2).norm(dim=-1, keepdim=True) / expected.flatten(-2).norm(dim=-1, keepdim=True)
    assert float(ratio.std()) > 0.01  # tokens differ, so one ratio for all of them would show
    torch.testing.assert_close(kept, expected.flatten(-2) * ratio, rtol=1e-5, atol=1e-5)


def test_a_vector_is_added_where_it_is_asked_for(model: PreTrainedModel) -> None:
    old = values_at(model, intervene(model, []))
    for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
        found = values_at(model, steer(model, VECTOR, site=site, layers=[1], factor=2.0))
        torch.testing.assert_close(
            found[f"{site}/1"], old[f"{site}/1"] + 2 * torch.tensor(VECTOR), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(found["resid_pre/1"], old["resid_pre/1"]) == (site != "resid_pre")


def test_steps_at_one_place_act_in_their_order(model: PreTrainedModel) -> None:
    """Ablate and add do not commute: listed in both orders, and nested in both orders."""
    out = DirectionAblation(vector=vector_text(VECTOR), sites=["attn_out"], layers=[1])
    add = Steering(vector=vector_text(VECTOR + OTHER), sites=["attn_out"], layers=[1])
    unit = torch.tensor(VECTOR / np.linalg.norm(VECTOR))
    left_over = float(unit @ torch.tensor(VECTOR + OTHER))
    for steps, expected in (([out, add], left_over), ([add, out], 0.0)):
        listed = values_at(model, intervene(model, steps))
        torch.testing.assert_close(
            listed["attn_out/1"] @ unit, torch.full((1, len(LINES[2])), expected), rtol=1e-4, atol=1e-5
        )
        with intervene(model, steps[:1]):
            nested = values_at(model, intervene(model, steps[1:]))
        assert all(torch.equal(nested[name], one) for name, one in listed.items())


def test_what_changes_parts_does_not_hide_them(model: PreTrainedModel) -> None:
    """Inside a context that changes every part of a block, the parts of the block are still found."""
    factors = {(0, 1): 0.0}
    once = values_at(model, scale_heads(model, factors))
    with steer(model, VECTOR, site="attn_out", layers=[0]), ablate(model, VECTOR, sites=["mlp_out"], layers=[0]):
        twice = values_at(model, scale_heads(model, factors))
    assert torch.equal(once["z/0"], twice["z/0"])
    torch.testing.assert_close(twice["attn_out/0"], once["attn_out/0"] + torch.tensor(VECTOR), rtol=1e-5, atol=1e-5)


class _StopError(Exception):
    pass


def test_no_effect_is_left_whatever_happened_inside(model: PreTrainedModel) -> None:
    ids = torch.tensor([LINES[0]])
    before = model(ids, use_cache=False).last_hidden_state
    n_hooks = _hooks(model)

    @contextmanager
    def stopping() -> Iterator[None]:
        def stop(*_arguments: object) -> None:
            raise _StopError

        handle = model.get_submodule(names_of(model).blocks)[1].register_forward_hook(stop)
        try:
            yield
        finally:
            handle.remove()

    for at, error in (("all", _StopError), ("unknown", ExtractionError)):  # the second comes from the hook itself
        with (
            pytest.raises(error),
            ablate(model, VECTOR, positions=at),
            scale_heads(model, {(0, 0): 0.0}),
            steer(model, VECTOR, site="resid_post", layers=[0]),
            stopping(),
        ):
            model(ids, use_cache=False)
    with pytest.raises(ModelError), ablate(model, VECTOR), steer(model, VECTOR, site="resid_pre", layers=[99]):
        pass
    outer, inner = ablate(model, VECTOR), steer(model, VECTOR, site="mlp_out", layers=[0])
    outer.__enter__()
    inner.__enter__()
    assert not torch.equal(model(ids, use_cache=False).last_hidden_state, before)
    outer.__exit__(None, None, None)  # in another order than they were entered
    inner.__exit__(None, None, None)
    assert _hooks(model) == n_hooks
    assert torch.equal(model(ids, use_cache=False).last_hidden_state, before)


def _hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_word_that_nobody_explained_is_an_error(model: PreTrainedModel) -> None:
    ids = torch.tensor([LINES[0]])
    with ablate(model, VECTOR, positions="decision"):
        with pytest.raises(ExtractionError, match="'decision'"):
            model(ids, use_cache=False)
        for masks, said in (({"think": (1, 9)}, "'decision'"), ({"decision": (1, 8)}, "does not fit")):
            given = {word: torch.ones(shape, dtype=torch.bool) for word, shape in masks.items()}
            with pytest.raises(ExtractionError, match=said), positions_of_pass(given):
                model(ids, use_cache=False)


def _heads(layer: int, head: int, *factors: float) -> HeadScaling:
    return HeadScaling(heads=[HeadFactors(layer=layer, head=head, factors=list(factors))])


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (_heads(9, 0, 0.0), "layer 9 is not in the model"),
        (_heads(0, 4, 0.0), "head 4 is not in the model"),
        (_heads(0, 0, 0.0, 1.0), "one finite factor or"),
        (_heads(0, 0, float("nan")), "one finite factor or"),
        (Steering(vector=vector_text(VECTOR[:3]), sites=["resid_pre"], layers=[0]), "has 3 numbers"),
        (Steering(vector=vector_text(0 * VECTOR), sites=["resid_pre"], layers=[0]), "is zero"),
        (DirectionAblation(vector=vector_text(VECTOR), sites=["resid_mid"], layers=[0]), "resid_mid cannot be changed"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(step: HeadScaling | Steering | DirectionAblation, said: str) -> None:
    with pytest.raises(ModelError, match=said), intervene(ARCHITECTURES["llama"](), [step]):
        pass


def test_steps_have_a_digest() -> None:
    steps = [_heads(0, 1, 0.0), DirectionAblation(vector=vector_text(VECTOR), sites=["mlp_out"], layers=[0, 1])]
    whole = Interventions.of(steps)
    assert Interventions.model_validate_json(whole.model_dump_json()) == whole
    assert Interventions.of(steps[::-1]).digest != whole.digest
    named = [steps[0], steps[1].model_copy(update={"origin": "probe refusal"})]
    assert Interventions.of(named).digest == whole.digest
    assert whole.choices == ()
    assert Interventions.of([steps[0].model_copy(update={"positions": "decision"})]).choices == ("decision",)
