"""The training loss and its gradients against the formula computed on its own, in float64."""

import copy
import math
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.model.flow_matching import add_noise, flow_matching_loss, sample_sigmas, timesteps_of
from hvkf.model.lora import add_lora
from hvkf.model.random import draw_normal, generator_for

from .conftest import relative_difference
from .test_flow_matching import SAMPLING_SCHEMES, WEIGHTING_SCHEMES

TOLERANCE = 1e-5
SHAPE = (16, 2, 4, 6)


@pytest.fixture(scope="module")
def trained(
    loaded_transformer: HunyuanVideoTransformer3DModel,
) -> tuple[HunyuanVideoTransformer3DModel, HunyuanVideoTransformer3DModel]:
    """A transformer with a LoRA whose gradients are all non-zero, and its copy in float64."""
    model = copy.deepcopy(loaded_transformer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(model, rank=4, alpha=8, init=False, train_norm_layers=True)
    return model, copy.deepcopy(model).double()


def make_batch(batch_size: int) -> dict[str, torch.Tensor]:
    generators = [generator_for("batch", row) for row in range(batch_size)]
    mask = torch.zeros(batch_size, 12, dtype=torch.bool)
    for row in range(batch_size):
        mask[row, : 4 + 3 * row] = True
    return {
        "latents": draw_normal(SHAPE, generators),
        "condition": draw_normal(SHAPE, generators),
        "noise": draw_normal(SHAPE, generators),
        "embeds": draw_normal((12, 32), generators),
        "pooled": draw_normal((24,), generators),
        "mask": mask,
    }


def predict(
    model: HunyuanVideoTransformer3DModel,
    batch: dict[str, torch.Tensor],
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    dtype = noisy.dtype
    output: tuple[torch.Tensor] = model(
        hidden_states=torch.cat([noisy, batch["condition"].to(dtype)], dim=1),
        timestep=timesteps,
        encoder_hidden_states=batch["embeds"].to(dtype),
        encoder_attention_mask=batch["mask"],
        pooled_projections=batch["pooled"].to(dtype),
        guidance=torch.full((len(noisy),), 1000.0, dtype=dtype),
        return_dict=False,
    )
    return output[0]


def weight_of(scheme: str, sigma: float) -> float:
    if scheme == "sigma_sqrt":
        return 1 / sigma**2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma * sigma))
    return 1.0


def formula_loss(
    model: HunyuanVideoTransformer3DModel,
    batch: dict[str, torch.Tensor],
    sigmas: torch.Tensor,
    scheme: str,
) -> torch.Tensor:
    """mean_i w(s_i) mean_j (f((1-s_i) x_i + s_i n_i)_j - (n_i - x_i)_j)^2, row by row."""
    rows = []
    for row, sigma in enumerate(sigmas.double().tolist()):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        latents, noise = one["latents"].double(), one["noise"].double()
        timestep = torch.tensor([math.floor(1000 * float(sigmas[row]))])
        prediction = predict(model, one, latents + sigma * (noise - latents), timestep)
        error = (prediction - (noise - latents)) ** 2
        rows.append(weight_of(scheme, sigma) * error.sum() / error.numel())
    return torch.stack(rows).sum() / len(rows)


def gradients(model: HunyuanVideoTransformer3DModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values: Any = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, values, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("weighting", WEIGHTING_SCHEMES)
@pytest.mark.parametrize("sampling", SAMPLING_SCHEMES)
def test_loss_and_gradients_equal_the_formula(
    sampling: str,
    weighting: str,
    batch_size: int,
    trained: tuple[HunyuanVideoTransformer3DModel, HunyuanVideoTransformer3DModel],
) -> None:
    model, model64 = trained
    batch = make_batch(batch_size)
    sigmas = sample_sigmas(sampling, batch_size, generator_for("sigma", sampling))
    noisy = add_noise(batch["latents"], batch["noise"], sigmas)
    prediction = predict(model, batch, noisy, timesteps_of(sigmas))
    loss = flow_matching_loss(prediction, batch["latents"], batch["noise"], sigmas, weighting)
    expected = formula_loss(model64, batch, sigmas, weighting)
    assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    found, wanted = gradients(model, loss), gradients(model64, expected)
    for name, value in wanted.items():
        assert value.any(), name
        assert relative_difference(found[name], value) < TOLERANCE, name
