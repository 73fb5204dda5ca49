"""What passes capture is what a plain forward of one sequence shows: every architecture, site and kind of pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from architectures import ARCHITECTURES, CONTEXT, PARALLEL, VOCABULARY, heads_of, names_of, plain_sites
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from units_of import capture_rows, unit_of, without

from cliffstore.extract.passes import Passes, plan_passes
from cliffstore.extract.tree import UnitExample
from cliffstore.extract.trial import disagreement
from cliffstore.model import attention
from cliffstore.model.capture import SiteCapture
from cliffstore.model.sites import arrays_of, locate, output_projection
from cliffstore.records import SITES
from cliffstore.schema import ModelIdentity

LIMIT = 1e-5
_RANDOM = torch.Generator().manual_seed(3)


def _tokens(n: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (n,), generator=_RANDOM).tolist()


STEM, BRANCH = _tokens(9), _tokens(7)
SEQUENCES = [
    [*STEM, *BRANCH, *_tokens(5)],
    [*STEM, *BRANCH, *_tokens(8)],  # two sequences that part late
    [*STEM, *_tokens(11)],
    STEM,  # the beginning of others
    [*STEM, *_tokens(1)],
    [*STEM, *BRANCH],
    _tokens(13),  # shares nothing
    _tokens(2),
    _tokens(40),  # longer than a pass, and much longer than a window
]
SEQUENCES.append(list(SEQUENCES[2]))  # twice the same

KINDS: dict[str, Callable[[list[UnitExample]], list[Passes]]] = {
    "tree, small passes": lambda unit: plan_passes(unit, "tree", 8),
    "tree, passes of one node": lambda unit: plan_passes(unit, "tree", 1),
    "tree, one pass": lambda unit: plan_passes(unit, "tree", 1_000),
    "padded": lambda unit: plan_passes(unit, "padded", 48),
    "padded, long ones in pieces": lambda unit: plan_passes(unit, "padded", 20),
    "padded, as loaded": lambda unit: plan_passes(unit, "padded", 48, chunk=False),
}


def identity_of(model: PreTrainedModel) -> ModelIdentity:
    config, heads = model.config, heads_of(model)
    return ModelIdentity(
        name="m",
        revision=None,
        config_digest="0",
        weights_digest=None,
        model_type=config.model_type,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=heads.n_heads,
        d_head=heads.d_head,
    )


def capture_of(model: PreTrainedModel, sites: list[str], layers: list[int] | None = None) -> SiteCapture:
    identity = identity_of(model)
    arrays = arrays_of(identity, sites, range(identity.n_layers) if layers is None else layers)
    with torch.inference_mode():
        return SiteCapture(model, arrays, identity.n_layers, identity.n_heads)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sites(architecture: str) -> list[str]:
    return [site for site in SITES if site != "resid_mid" or architecture not in PARALLEL]


@pytest.fixture(scope="module")
def plain(architecture: str) -> dict[tuple[int, ...], dict[str, torch.Tensor]]:
    """Every sequence by itself, read by hooks written for the architecture."""
    model = ARCHITECTURES[architecture]()
    return {tuple(tokens): plain_sites(model, tokens) for tokens in SEQUENCES}


def worst_error(
    found: dict[str, dict[int, torch.Tensor]],
    unit: list[UnitExample],
    plain: dict[tuple[int, ...], dict[str, torch.Tensor]],
) -> dict[str, float]:
    """Return array name -> largest |captured - plain| / |plain| over all positions of all examples."""
    worst = dict.fromkeys(found, 0.0)
    for name, vectors in found.items():
        for one in unit:
            expected = next(p for ids, p in plain.items() if list(ids[: len(one.token_ids)]) == one.token_ids.tolist())
            for position, row in enumerate(one.rows.tolist()):
                if row >= 0:
                    right = expected[name][position].double()
                    wrong = (vectors[row].double() - right).norm() / right.norm()
                    worst[name] = max(worst[name], float(wrong))
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_captured_is_plain(architecture: str, sites: list[str], plain: dict, kind: str) -> None:
    capture = capture_of(ARCHITECTURES[architecture](), sites)
    if kind.endswith("as loaded"):
        capture.leave_trees()
    else:
        assert capture.over_trees
    unit = unit_of(SEQUENCES)
    found = capture_rows(capture, KINDS[kind](unit))
    assert set(found) == set(next(iter(plain.values())))
    assert all(set(vectors) == {row for one in unit for row in one.rows.tolist()} for vectors in found.values())
    worst = worst_error(found, unit, plain)
    assert max(worst.values()) <= LIMIT, worst


@pytest.mark.parametrize("kind", ["tree, small passes", "padded"])
def test_captured_is_plain_where_few_positions_are_stored(
    architecture: str, sites: list[str], plain: dict, kind: str
) -> None:
    whole = unit_of(SEQUENCES)
    rows = sorted({row for one in whole for row in one.rows.tolist()})
    unit = without(whole, {row for row in rows if row % 5})
    capture = capture_of(ARCHITECTURES[architecture](), sites)
    worst = worst_error(capture_rows(capture, KINDS[kind](unit)), unit, plain)
    assert max(worst.values()) <= LIMIT, worst


def test_what_a_tree_captures_adds_up(architecture: str) -> None:
    names = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    model = ARCHITECTURES[architecture]()
    found = capture_rows(capture_of(model, [*names, "z"]), KINDS["tree, small passes"](unit_of(SEQUENCES)))
    whole = ARCHITECTURES[architecture]()
    located, heads = locate(whole, whole.config.num_hidden_layers), heads_of(whole)
    for layer, block in enumerate(located.blocks):
        pre, attn, mlp, post, z = (torch.stack(list(found[f"{name}/{layer}"].values())) for name in [*names, "z"])
        assert (pre + attn + mlp - post).norm() <= 1e-4 * post.norm()
        projection = output_projection(whole, located, layer, heads.n_heads)
        matrix = projection.weight.T if isinstance(projection, Conv1D) else projection.weight
        projected = nn.functional.linear(z.flatten(1), matrix, projection.bias)
        if "norm" in names_of(whole).attention:
            projected = block.get_submodule(names_of(whole).attention)(projected)
        assert (projected - attn).norm() <= LIMIT * attn.norm()


def test_every_architecture_may_use_trees(architecture: str, sites: list[str]) -> None:
    assert disagreement(capture_of(ARCHITECTURES[architecture](), sites), "float32") is None


def _blind(monkeypatch: pytest.MonkeyPatch, change: Callable[[attention.PassAttention], None]) -> None:
    """Change what every pass over a tree believes of its nodes."""
    real = attention.attending

    def attending(current: attention.PassAttention):
        if current.ends_S is not None:
            change(current)
        return real(current)

    monkeypatch.setattr(attention, "attending", attending)


def _no_ends(current: attention.PassAttention) -> None:
    current.ends_S = torch.full_like(current.ends_S, current.n_queries)


def _no_path(current: attention.PassAttention) -> None:
    current.past = {layer: (torch.zeros_like(k), torch.zeros_like(v)) for layer, (k, v) in current.past.items()}


@pytest.mark.parametrize("change", [_no_ends, _no_path], ids=["siblings seen", "path lost"])
def test_wrong_attention_is_found_out(
    architecture: str, change: Callable[[attention.PassAttention], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _blind(monkeypatch, change)
    reason = disagreement(capture_of(ARCHITECTURES[architecture](), ["resid_post"]), "float32")
    assert reason is not None
    assert "differs from a plain forward pass" in reason


def test_a_window_that_is_not_what_the_configuration_says_is_found_out() -> None:
    model = ARCHITECTURES["gemma2"]()
    for block in model.layers:
        block.self_attn.sliding_window = None
    assert disagreement(capture_of(model, ["resid_post"]), "float32") is not None


def test_a_model_whose_attention_stays_is_told() -> None:
    capture = capture_of(ARCHITECTURES["llama"](), ["resid_post"])
    capture.leave_trees()
    assert "does not let its attention be replaced" in str(disagreement(capture, "float32"))


def test_a_model_that_fails_over_trees_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = capture_of(ARCHITECTURES["llama"](), ["resid_post"])

    def broken(*_arguments: object) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(attention, "_dense", broken)
    assert disagreement(capture, "float32") == "a pass over a tree fails in it (RuntimeError no such kernel)"


def test_nothing_above_the_last_site_is_computed(architecture: str) -> None:
    model = ARCHITECTURES[architecture]()
    names = names_of(model)
    calls = {"attention": 0, "mlp": 0}
    capture = capture_of(model, ["resid_pre", "z"], [1])
    blocks = locate(capture.model, 2).blocks
    assert len(blocks) == 2
    inner = {"attention": names.projection, "mlp": names.mlp}
    for part, name in inner.items():
        blocks[1].get_submodule(name).register_forward_hook(
            lambda *_, part=part: calls.__setitem__(part, calls[part] + 1)
        )
    capture_rows(capture, plan_passes(unit_of(SEQUENCES[:3]), "padded", CONTEXT))
    assert calls["mlp"] == 0
    assert calls["attention"] == 0, "z is read before the output projection"
