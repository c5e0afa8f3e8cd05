"""The flow-matching objective: noise levels, noisy latents, the loss and its weights.

Method: rectified flow as in SD3 (arXiv:2403.03206), with the reference's numbers: x_t = (1-s) x +
s n, target n - x, timestep floor(1000 s). A sample's loss is weighed by its own sigma.
"""

import math
from dataclasses import replace
from typing import Literal, get_args

import torch

from hvkf.errors import BadInput
from hvkf.model.text import PromptEmbeds

SamplingScheme = Literal["uniform", "sigmoid", "logit_normal"]
WeightingScheme = Literal["none", "sigma_sqrt", "cosmap"]
NUM_TIMESTEPS = 1000.0


def sample_sigmas(
    scheme: str,
    num: int,
    generator: torch.Generator,
    *,
    sigmoid_scale: float = 1.0,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    shift: float = 7.0,
) -> torch.Tensor:
    """Draw noise levels.

    Args:
        scheme: `uniform` on [0, 1); `sigmoid` of scale times a standard normal; `logit_normal`,
            the sigmoid of scale times a normal of the given mean and standard deviation.
        num: How many.
        generator: CPU generator.
        sigmoid_scale: Scale inside the sigmoid; not used by `uniform`.
        logit_mean: Mean of `logit_normal`.
        logit_std: Standard deviation of `logit_normal`.
        shift: Shift towards noise; see `shift_sigmas`.

    Returns:
        float32 sigmas [num] in [0, 1], shifted.

    Raises:
        BadInput: an unknown scheme.
    """
    if scheme == "uniform":
        sigmas = torch.rand(num, generator=generator)
    elif scheme == "sigmoid":
        sigmas = torch.sigmoid(sigmoid_scale * torch.randn(num, generator=generator))
    elif scheme == "logit_normal":
        normal = logit_mean + logit_std * torch.randn(num, generator=generator)
        sigmas = torch.sigmoid(sigmoid_scale * normal)
    else:
        raise BadInput(_unknown("timestep_sampling", scheme, get_args(SamplingScheme)))
    return shift_sigmas(sigmas, shift)


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift sigmas towards noise: s' = a s / (1 + (a - 1) s); 0 and 1 stay."""
    return sigmas * shift / (1 + (shift - 1) * sigmas)


def timesteps_of(sigmas: torch.Tensor) -> torch.Tensor:
    """Return the int64 timesteps floor(1000 s) that the transformer is told."""
    return (sigmas * NUM_TIMESTEPS).long()


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Mix latents and noise [B, C, F, H, W] at sigmas [B]: x_t = (1 - s) x + s n."""
    sigmas_B1111 = sigmas.view(-1, 1, 1, 1, 1)
    return (1.0 - sigmas_B1111) * latents + sigmas_B1111 * noise


def loss_weights(scheme: str, sigmas: torch.Tensor) -> torch.Tensor:
    """Weigh each sample by its own sigma.

    Args:
        scheme: `none`: 1; `sigma_sqrt`: s^-2; `cosmap`: 2 / (pi (1 - 2 s + 2 s^2)), as diffusers'
            `compute_loss_weighting_for_sd3` names and defines them.
        sigmas: [B].

    Returns:
        Weights [B].

    Raises:
        BadInput: an unknown scheme.
    """
    if scheme == "none":
        return torch.ones_like(sigmas)
    if scheme == "sigma_sqrt":
        # A uniform draw can be exactly 0, which would make the weight infinite.
        return sigmas.clamp_min(torch.finfo(sigmas.dtype).eps) ** -2.0
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    raise BadInput(_unknown("weighting_scheme", scheme, get_args(WeightingScheme)))


def sample_losses(
    prediction: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    weighting: str = "none",
) -> torch.Tensor:
    """Compute each sample's weighted mean squared error against the velocity n - x.

    Args:
        prediction: The transformer's output [B, C, F, H, W]; compared in float32 or finer.
        latents: x [B, C, F, H, W].
        noise: n [B, C, F, H, W].
        sigmas: Shifted noise levels [B].
        weighting: A scheme of `loss_weights`.

    Returns:
        Losses [B].
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    target = noise.to(dtype) - latents.to(dtype)
    errors = (prediction.to(dtype) - target).square().flatten(1).mean(dim=1)
    return loss_weights(weighting, sigmas) * errors


def flow_matching_loss(
    prediction: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    weighting: str = "none",
) -> torch.Tensor:
    """Average `sample_losses` over the batch to the scalar that is trained."""
    return sample_losses(prediction, latents, noise, sigmas, weighting).mean()


def drop_captions(prompt: PromptEmbeds, dropped: torch.Tensor) -> PromptEmbeds:
    """Replace the captions of some rows by none.

    A dropped caption is zero embeddings with a mask that keeps one token. (The reference empties
    the mask too: the token refiner then divides by zero and the loss is NaN.) The empty caption's
    encoding is not used, since training on a cache has no text encoder at hand.

    Args:
        prompt: Embeddings of B rows.
        dropped: bool [B], true where the caption is dropped.
    """
    rows = dropped.to(prompt.prompt_embeds.device).bool()
    one_token = torch.zeros_like(prompt.prompt_attention_mask)
    one_token[:, 0] = 1
    return replace(
        prompt,
        prompt_embeds=prompt.prompt_embeds.masked_fill(rows[:, None, None], 0),
        prompt_attention_mask=torch.where(rows[:, None], one_token, prompt.prompt_attention_mask),
        pooled_prompt_embeds=prompt.pooled_prompt_embeds.masked_fill(rows[:, None], 0),
    )


def _unknown(setting: str, value: str, valid: tuple[str, ...]) -> str:
    return f"There is no {setting} {value!r}: use one of {', '.join(valid)}."
