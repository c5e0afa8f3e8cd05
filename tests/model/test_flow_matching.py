import math
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.training_utils import compute_loss_weighting_for_sd3
from hypothesis import given
from hypothesis import strategies as st

from hvkf.errors import BadInput
from hvkf.model.flow_matching import (
    add_noise,
    drop_captions,
    flow_matching_loss,
    loss_weights,
    sample_losses,
    sample_sigmas,
    shift_sigmas,
    timesteps_of,
)
from hvkf.model.random import generator_for
from hvkf.model.text import PromptEmbeds

SAMPLING_SCHEMES = ("uniform", "sigmoid", "logit_normal")
WEIGHTING_SCHEMES = ("none", "sigma_sqrt", "cosmap")


@given(st.floats(0, 1), st.floats(1, 20))
def test_the_shift_keeps_the_ends_and_moves_the_rest_towards_noise(
    sigma: float, shift: float
) -> None:
    shifted = float(shift_sigmas(torch.tensor(sigma, dtype=torch.float64), shift))
    assert shifted == pytest.approx(shift * sigma / (1 + (shift - 1) * sigma))
    assert sigma - 1e-12 <= shifted <= 1 + 1e-12
    ends = shift_sigmas(torch.tensor([0.0, 1.0]), shift)
    assert ends.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize(
    ("scheme", "median"),
    [("uniform", 0.5), ("sigmoid", 0.5), ("logit_normal", 1 / (1 + math.exp(-2 * 0.3)))],
)
def test_the_draws_have_their_schemes_median(scheme: str, median: float) -> None:
    sigmas = sample_sigmas(
        scheme,
        20_000,
        generator_for(0),
        sigmoid_scale=2.0,
        logit_mean=0.3,
        logit_std=0.5,
        shift=7.0,
    )
    expected = 7 * median / (1 + 6 * median)
    assert float(sigmas.median()) == pytest.approx(expected, abs=0.01)
    assert float(sigmas.min()) >= 0
    assert float(sigmas.max()) <= 1


@pytest.mark.parametrize("scheme", SAMPLING_SCHEMES)
def test_draws_depend_on_their_generator_only(scheme: str) -> None:
    first = sample_sigmas(scheme, 3, generator_for(5, "sigma"))
    again = sample_sigmas(scheme, 3, generator_for(5, "sigma"))
    assert torch.equal(first, again)
    assert not torch.equal(first, sample_sigmas(scheme, 3, generator_for(6, "sigma")))


def test_unknown_schemes_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(BadInput, match="uniform, sigmoid, logit_normal"):
        sample_sigmas("sigma", 1, generator_for(0))
    with pytest.raises(BadInput, match="none, sigma_sqrt, cosmap"):
        loss_weights("sqrt", torch.tensor([0.5]))


def test_timesteps_are_floored() -> None:
    assert timesteps_of(torch.tensor([0.0, 0.0009, 0.8756, 1.0])).tolist() == [0, 0, 875, 1000]


def test_noise_and_latents_mix_by_each_rows_sigma() -> None:
    latents, noise = torch.full((3, 1, 1, 1, 2), 2.0), torch.full((3, 1, 1, 1, 2), 6.0)
    mixed = add_noise(latents, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert mixed[:, 0, 0, 0, 0].tolist() == [2, 3, 6]


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_weights_follow_diffusers_formulas(scheme: str) -> None:
    sigmas = torch.tensor([0.01, 0.3, 0.7, 1.0])
    expected = compute_loss_weighting_for_sd3(scheme, sigmas=sigmas)
    assert torch.allclose(loss_weights(scheme, sigmas), expected)


def test_a_sigma_of_zero_has_a_finite_weight() -> None:
    assert torch.isfinite(loss_weights("sigma_sqrt", torch.zeros(1))).all()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_each_sample_is_weighed_by_its_own_sigma(batch_size: int, scheme: str) -> None:
    """Fault 5 of the reference: a table of 1000 weights was multiplied into the errors."""
    sigmas = torch.tensor([0.2, 0.5, 0.9])[:batch_size]
    prediction, latents, noise = torch.randn(3, batch_size, 16, 2, 4, 4)
    losses = sample_losses(prediction, latents, noise, sigmas, scheme)
    assert losses.shape == (batch_size,)
    for row in range(batch_size):
        error = ((prediction[row] - (noise[row] - latents[row])) ** 2).mean()
        expected = error * loss_weights(scheme, sigmas[row : row + 1])[0]
        assert float(losses[row]) == pytest.approx(float(expected), rel=1e-5)
    loss = flow_matching_loss(prediction, latents, noise, sigmas, scheme)
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-6)


def test_16_bit_predictions_are_compared_in_float32() -> None:
    prediction, latents, noise = torch.randn(3, 1, 16, 2, 4, 4)
    half = prediction.to(torch.bfloat16)
    loss = flow_matching_loss(half, latents, noise, torch.ones(1))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(((half.float() - noise + latents) ** 2).mean()))


def test_dropping_every_caption_leaves_the_loss_and_its_gradients_finite(
    transformer: HunyuanVideoTransformer3DModel, transformer_inputs: dict[str, Any]
) -> None:
    """Fault 6 of the reference: the emptied mask made the token refiner's mean NaN."""
    prompt = PromptEmbeds(
        transformer_inputs["encoder_hidden_states"],
        transformer_inputs["encoder_attention_mask"],
        transformer_inputs["pooled_projections"],
    )
    dropped = drop_captions(prompt, torch.tensor([True]))
    transformer.proj_out.requires_grad_(True)
    inputs = {
        **transformer_inputs,
        "encoder_hidden_states": dropped.prompt_embeds,
        "encoder_attention_mask": dropped.prompt_attention_mask,
        "pooled_projections": dropped.pooled_prompt_embeds,
    }
    loss = transformer(**inputs)[0].square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    gradient = transformer.proj_out.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()


def test_only_the_dropped_captions_are_replaced() -> None:
    mask = torch.zeros(3, 5, dtype=torch.int64)
    mask[:, :4] = 1
    prompt = PromptEmbeds(torch.randn(3, 5, 8), mask, torch.randn(3, 6))
    result = drop_captions(prompt, torch.tensor([False, True, False]))
    for row in (0, 2):
        assert torch.equal(result.prompt_embeds[row], prompt.prompt_embeds[row])
        assert torch.equal(result.pooled_prompt_embeds[row], prompt.pooled_prompt_embeds[row])
        assert torch.equal(result.prompt_attention_mask[row], mask[row])
    assert not result.prompt_embeds[1].any()
    assert not result.pooled_prompt_embeds[1].any()
    assert result.prompt_attention_mask[1].tolist() == [1, 0, 0, 0, 0]
    assert prompt.prompt_embeds[1].any()
