"""The transformer's loss on a batch of noised latents."""

from typing import Any

import torch

from hvkf.model.flow_matching import add_noise, sample_losses, timesteps_of
from hvkf.training.dataset import LatentBatch

GUIDANCE_SCALE = 1000.0


def batch_losses(
    transformer: Any,
    batch: LatentBatch,
    *,
    dtype: torch.dtype,
    guidance: float,
    weighting: str,
) -> torch.Tensor:
    """Compute each sample's loss, float32 [B].

    Args:
        transformer: Widened transformer, or what wraps it for several ranks.
        batch: Noised samples on the transformer's device.
        dtype: Type of the transformer's inputs.
        guidance: Embedded guidance.
        weighting: See `flow_matching.loss_weights`.
    """
    noisy = add_noise(batch.latents, batch.noise, batch.sigmas)
    prompt = batch.prompt.to(dtype=dtype)
    scale = torch.full_like(batch.sigmas, guidance * GUIDANCE_SCALE)
    prediction = transformer(
        hidden_states=torch.cat([noisy.to(dtype), batch.condition.to(dtype)], dim=1),
        timestep=timesteps_of(batch.sigmas),
        encoder_hidden_states=prompt.prompt_embeds,
        encoder_attention_mask=prompt.prompt_attention_mask,
        pooled_projections=prompt.pooled_prompt_embeds,
        guidance=scale,
        return_dict=False,
    )[0]
    return sample_losses(prediction, batch.latents, batch.noise, batch.sigmas, weighting)
