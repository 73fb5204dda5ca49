"""Sites of tiny random models of three architectures: a captured vector is what a plain forward shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, PreTrainedModel, Qwen2Config, Qwen2Model

from cliffstore.errors import ModelError, UserError
from cliffstore.model.capture import PassTensors, SiteCapture
from cliffstore.model.sites import arrays_of, locate, parse_layers
from cliffstore.schema import ArrayIdentity, ModelIdentity

VOCABULARY, WIDTH, LAYERS = 64, 32, 3
SEQUENCES = [[5, 9, 1, 7, 3], [2], [8, 8, 30, 4, 4, 1, 60, 12, 3], [5, 9, 1]]


def _llama() -> PreTrainedModel:
    return LlamaModel(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2Model(GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64))


def _qwen2() -> PreTrainedModel:
    return Qwen2Model(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=1,
        )
    )


Make = Callable[[], PreTrainedModel]


@pytest.fixture(params=[_llama, _gpt2, _qwen2], ids=["llama", "gpt2", "qwen2"])
def make(request: pytest.FixtureRequest) -> Make:
    """Give a function that builds the same random model each time."""

    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        model = request.param().eval()
        with torch.no_grad():  # norms of ones would hide a norm applied twice
            for name, weight in model.named_parameters():
                if "norm" in name or ".ln_" in name or name.startswith("ln_f"):
                    weight.add_(torch.rand_like(weight))
        return model

    return build


def _identity(n_layers: int = LAYERS) -> ModelIdentity:
    return ModelIdentity(
        name="m",
        revision=None,
        config_digest="0",
        weights_digest=None,
        model_type="llama",
        n_layers=n_layers,
        d_model=WIDTH,
        n_heads=4,
        d_head=WIDTH // 4,
    )


def _plain(make: Make, tokens: list[int]) -> tuple[torch.Tensor, ...]:
    """Return embeddings, block outputs and, at the end, the last hidden state, of one sequence by itself."""
    with torch.inference_mode():
        output = make()(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    return tuple(hidden[0] for hidden in output.hidden_states)


def _site_capture(make: Make, sites: list[str], layers: list[int]) -> SiteCapture:
    return SiteCapture(make(), arrays_of(_identity(), sites, layers), LAYERS, 4)


def _run(
    capture: SiteCapture, ids_BT: torch.Tensor, lengths: list[int], kept_N: torch.Tensor
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    positions_BT = torch.arange(ids_BT.shape[1]).expand(ids_BT.shape)
    one = PassTensors(ids_BT, positions_BT, torch.tensor(lengths), kept_N, ends_S=None, carry_C=None)
    capture.run(one, lambda name, vectors_ND: found.update({name: vectors_ND.clone()}))
    return found


def _capture(
    make: Make, sites: list[str], layers: list[int], sequences: list[list[int]]
) -> tuple[dict[str, list[torch.Tensor]], SiteCapture]:
    """Capture all positions in one right-padded pass. Return array name -> [T, D] of each sequence."""
    capture = _site_capture(make, sites, layers)
    lengths = [len(tokens) for tokens in sequences]
    ids_BT = torch.tensor([tokens + [0] * (max(lengths) - len(tokens)) for tokens in sequences])
    kept_N = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).flatten().nonzero()[:, 0]
    found = _run(capture, ids_BT, lengths, kept_N)
    return {name: list(vectors.split(lengths)) for name, vectors in found.items()}, capture


def test_resid_post_is_the_output_of_its_block(make: Make) -> None:
    found, _ = _capture(make, ["resid_post"], list(range(LAYERS)), SEQUENCES[:1])
    hidden = _plain(make, SEQUENCES[0])
    assert set(found) == {"resid_post/0", "resid_post/1", "resid_post/2"}
    for layer in range(LAYERS - 1):
        torch.testing.assert_close(found[f"resid_post/{layer}"][0], hidden[layer + 1], rtol=0, atol=1e-6)


def test_last_resid_post_is_not_the_last_hidden_state(make: Make) -> None:
    """Trap 3: what Hugging Face calls the last hidden state comes after the final norm."""
    found, _ = _capture(make, ["resid_post", "final_norm"], [LAYERS - 1], SEQUENCES[:1])
    last_hidden = _plain(make, SEQUENCES[0])[-1]
    resid_post, final_norm = found[f"resid_post/{LAYERS - 1}"][0], found[f"final_norm/{LAYERS - 1}"][0]
    torch.testing.assert_close(final_norm, last_hidden, rtol=0, atol=1e-6)
    assert (resid_post - last_hidden).abs().max() > 0.1
    norm = locate(make(), LAYERS).final_norm
    assert norm is not None
    with torch.inference_mode():
        torch.testing.assert_close(norm(resid_post), last_hidden, rtol=0, atol=1e-5)


def test_last_resid_post_is_what_the_final_norm_receives(make: Make) -> None:
    received: list[torch.Tensor] = []
    model = make()
    norm = locate(model, LAYERS).final_norm
    assert norm is not None
    norm.register_forward_pre_hook(lambda _module, inputs: received.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=torch.tensor([SEQUENCES[0]]))
    found, _ = _capture(make, ["resid_post"], [LAYERS - 1], SEQUENCES[:1])
    torch.testing.assert_close(found[f"resid_post/{LAYERS - 1}"][0], received[0][0], rtol=0, atol=1e-6)


def test_padding_changes_nothing(make: Make) -> None:
    found, _ = _capture(make, ["resid_post", "final_norm"], list(range(LAYERS)), SEQUENCES)
    for number, tokens in enumerate(SEQUENCES):
        hidden = _plain(make, tokens)
        for layer in range(LAYERS - 1):
            torch.testing.assert_close(found[f"resid_post/{layer}"][number], hidden[layer + 1], rtol=1e-5, atol=1e-5)
        final = found[f"final_norm/{LAYERS - 1}"][number]
        torch.testing.assert_close(final, hidden[-1], rtol=1e-5, atol=1e-5)


def test_later_tokens_change_nothing_before_them(make: Make) -> None:
    """What makes one row for one prefix right, and what trap 6 broke."""
    found, _ = _capture(make, ["resid_post"], [LAYERS - 1], [SEQUENCES[0], SEQUENCES[3]])
    long, short = found[f"resid_post/{LAYERS - 1}"]
    torch.testing.assert_close(long[: len(short)], short, rtol=1e-5, atol=1e-5)


def test_only_kept_positions_come_back_in_the_order_asked_for(make: Make) -> None:
    tokens = SEQUENCES[2]
    kept = torch.tensor([8, 0, 3])
    found = _run(_site_capture(make, ["resid_post"], [1]), torch.tensor([tokens]), [len(tokens)], kept)
    assert found["resid_post/1"].shape == (3, WIDTH)
    torch.testing.assert_close(found["resid_post/1"], _plain(make, tokens)[2][kept], rtol=0, atol=1e-6)


def test_blocks_above_the_last_captured_layer_are_dropped(make: Make) -> None:
    found, capture = _capture(make, ["resid_post"], [0], SEQUENCES[:1])
    blocks = locate(capture.model, 1).blocks
    assert len(blocks) == 1
    torch.testing.assert_close(found["resid_post/0"][0], _plain(make, SEQUENCES[0])[1], rtol=0, atol=1e-6)
    kept = sum(weight.numel() for weight in capture.model.parameters())
    assert kept < sum(weight.numel() for weight in make().parameters())


def test_final_norm_keeps_all_blocks(make: Make) -> None:
    _, capture = _capture(make, ["final_norm"], [0], SEQUENCES[:1])
    assert len(locate(capture.model, LAYERS).blocks) == LAYERS


def test_hooks_do_not_stay(make: Make) -> None:
    _, capture = _capture(make, ["resid_post", "final_norm"], [0, 1], SEQUENCES)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in capture.model.modules())


def test_locate_finds_blocks_and_norm(make: Make) -> None:
    sites = locate(make(), LAYERS)
    assert len(sites.blocks) == LAYERS
    assert sites.final_norm is not None
    assert getattr(sites.holder, sites.attribute) is sites.blocks


def test_locate_says_what_it_looked_for(make: Make) -> None:
    with pytest.raises(ModelError, match="no list of 7 blocks"):
        locate(make(), 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        (" all ", [0, 1, 2, 3]),
        ("0-3", [0, 1, 2, 3]),
        ("2", [2]),
        ("3,1", [1, 3]),
        ("1-2, 2, 0", [0, 1, 2]),
        ("3-3", [3]),
    ],
)
def test_layers(text: str, expected: list[int]) -> None:
    assert parse_layers(text, 4) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "layers ''"),
        ("x", "layers 'x'"),
        ("1,,2", "write `all`"),
        ("1-", "write `all`"),
        ("-1", "write `all`"),
        ("1.5", "write `all`"),
        ("3-1", "names no layer"),
        ("4", "layer 4 is not in the model: it has layers 0-3"),
        ("0-29", "layer 29 is not in the model"),
    ],
)
def test_bad_layers_are_the_users_mistake(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_layers(text, 4)


def test_arrays_come_in_the_order_of_sites_and_layers() -> None:
    found = arrays_of(_identity(4), ["resid_post", "final_norm", "resid_post"], [0, 2])
    assert found == [
        ArrayIdentity(site="resid_post", layer=0, shape=[WIDTH]),
        ArrayIdentity(site="resid_post", layer=2, shape=[WIDTH]),
        ArrayIdentity(site="final_norm", layer=3, shape=[WIDTH]),
    ]


@pytest.mark.parametrize("sites", [[], ["resid"], ["resid_post", "logits"]])
def test_unknown_sites_are_the_users_mistake(sites: list[str]) -> None:
    with pytest.raises(
        ModelError, match="choose from resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, final_norm"
    ):
        arrays_of(_identity(), sites, [0])
