"""Direct attribution: shares of all heads, biases, MLPs and embedding add up to the score; bootstrap of means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, heads_of, names_of, plain_sites
from transformers import PreTrainedModel

from cliffstore.analyze.attribution import ProbeReading, layers_read, read_heads
from cliffstore.analyze.example_means import ExampleMeans
from cliffstore.errors import ModelError, ProbeError
from cliffstore.model.heads import head_outputs, read_linear, read_norm
from cliffstore.model.sites import locate

TOKENS = [5, 9, 1, 7, 3, 22, 60, 13, 9, 9, 41, 5]
B = -0.7
POST_NORM = ("gemma2", "gemma3", "olmo2")


def _reading(model: PreTrainedModel, site: str, layer: int, w_D: np.ndarray) -> ProbeReading:
    sites = locate(model, model.config.num_hidden_layers)
    outputs = head_outputs(model, sites, list(layers_read(site, layer)), heads_of(model).n_heads)
    norm = read_norm(model.get_submodule(names_of(model).norm), model.config.hidden_size)
    return read_heads(outputs, w_D, site, norm)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("site", ["resid_post", "final_norm", "attn_out", "resid_pre"])
def test_shares_and_the_rest_add_up_to_the_score(name: str, site: str) -> None:
    model = ARCHITECTURES[name]()
    layer = model.config.num_hidden_layers - 1
    w_D = np.random.default_rng(1).normal(size=model.config.hidden_size).astype(np.float32)
    found = {key: value.numpy() for key, value in plain_sites(model, TOKENS).items()}
    reading = _reading(model, site, layer, w_D)
    assert reading.frozen == ("the norm behind attention",) * (name in POST_NORM) + ("the final norm",) * (
        site == "final_norm"
    )
    total_T = np.full(len(TOKENS), 0.0)
    for at in reading.layers:
        shares_TH, bias_T = reading.layers[at].shares(found[f"z/{at}"])
        assert shares_TH.shape == (len(TOKENS), 4)
        total_T += shares_TH.sum(axis=1) + bias_T
    rest_TD = np.zeros_like(found["resid_pre/0"])
    if site != "attn_out":
        rest_TD = found["resid_pre/0"] + sum(found[f"mlp_out/{at}"] for at in reading.layers)
    if site != "final_norm":
        total_T += rest_TD @ w_D
    else:
        norm = reading.final_norm
        read_D = norm.gain_D * w_D
        read_D = read_D - read_D.mean() if norm.centred else read_D
        total_T = (total_T + rest_TD @ read_D) * reading.scale(found[f"resid_post/{layer}"]) + norm.shift_D @ w_D
    score_T = found[f"{site}/{layer}"].astype(np.float64) @ w_D + B
    np.testing.assert_allclose(total_T + B, score_T, rtol=1e-4, atol=1e-4)


def test_probes_that_read_no_sum_of_heads_are_refused() -> None:
    with pytest.raises(ProbeError, match="heads ablate"):
        layers_read("mlp_out", 3)
    with pytest.raises(ProbeError, match="reads the heads"):
        layers_read("z", 3)
    with pytest.raises(ProbeError, match="before any head"):
        layers_read("resid_pre", 0)
    assert layers_read("attn_out", 3) == range(3, 4)
    assert layers_read("resid_mid", 3) == range(4)
    assert layers_read("resid_pre", 3) == range(3)


def test_any_linear_module_is_read_and_others_are_not() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Bent(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    module = Doubled(6, 4)
    weight, bias = read_linear(module, 6)
    np.testing.assert_allclose(weight, 2 * module.weight.detach().numpy().T, atol=1e-6)
    np.testing.assert_allclose(bias, 2 * module.bias.detach().numpy(), atol=1e-6)
    with pytest.raises(ModelError, match="not linear"):
        read_linear(Bent(6, 4), 6)


def test_what_is_no_norm_is_not_frozen() -> None:
    with pytest.raises(ModelError, match="no norm"):
        read_norm(torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.ReLU()), 8)
    norm = read_norm(torch.nn.LayerNorm(7, eps=1e-2), 7)
    assert norm.centred
    assert norm.eps == pytest.approx(1e-2, rel=1e-6)


def test_means_do_not_depend_on_parts_and_intervals_hold_the_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, size=(60, 4))
    values[:30, 3] = np.nan
    examples = np.arange(60) * 7
    whole, parts = (ExampleMeans(4, resamples=400, level=0.95, seed=1) for _ in range(2))
    whole.add(examples, values)
    for part in np.array_split(np.random.default_rng(2).permutation(60), 7):
        parts.add(examples[part], values[part])
    one, other = whole.finish(), parts.finish()
    np.testing.assert_allclose(one.mean_X, np.nanmean(values, axis=0))
    for mine, theirs in ((one.mean_X, other.mean_X), (one.low_X, other.low_X), (one.high_X, other.high_X)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    assert one.n_X.tolist() == [60, 60, 60, 30]
    expected = 1.96 / np.sqrt([60, 60, 60, 30])
    assert np.all(np.abs((one.high_X - one.low_X) / 2 / expected - 1) < 0.35)
    assert np.all((one.low_X < one.mean_X) & (one.mean_X < one.high_X))
    assert np.isnan(ExampleMeans(2, resamples=0, level=0.9, seed=0).finish().low_X).all()
    half, seeded = ExampleMeans(4, resamples=400, level=0.5, seed=1), ExampleMeans(4, resamples=400, level=0.95, seed=2)
    half.add(examples, values)
    seeded.add(examples, values)
    inner = half.finish()
    assert np.all(np.abs((inner.high_X - inner.low_X) / (one.high_X - one.low_X) * 1.96 / 0.6745 - 1) < 0.25)
    assert not np.array_equal(seeded.finish().low_X, one.low_X)
