"""The denoising loop: Euler steps of flow matching with embedded guidance.

Method: diffusers' HunyuanVideoPipeline, with the condition latents beside the noisy ones as in the
reference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from hvkf.errors import BadInput
from hvkf.model.text import PromptEmbeds
from hvkf.model.widening import is_widened

GUIDANCE_UNIT = 1000.0


@torch.inference_mode()
def sample_latents(
    transformer: HunyuanVideoTransformer3DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    prompt: PromptEmbeds,
    condition_latents_BCFHW: torch.Tensor,
    *,
    noise: torch.Tensor,
    steps: int,
    guidance: float = 6.0,
    negative: PromptEmbeds | None = None,
    true_cfg_scale: float = 1.0,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Denoise to latents.

    Args:
        transformer: Widened transformer; it computes in its own type, where it lies.
        scheduler: From `load_scheduler`; its timesteps are set here.
        prompt: Embeddings of B rows.
        condition_latents_BCFHW: Scaled latents of the condition videos, [B, 16, f, h, w].
        noise: Where sampling starts, shaped like the condition; see `random.draw_normal`.
        steps: Number of Euler steps.
        guidance: Embedded guidance scale.
        negative: Embeddings of B prompts to keep away from; a second pass for each step.
        true_cfg_scale: How far: 1 is not at all.
        on_step: Called after each step with its index and the latents; an exception ends the loop.

    Returns:
        float32 latents [B, 16, f, h, w], scaled, on the transformer's device.

    Raises:
        BadInput: the transformer is not widened, or noise and condition differ in shape.
    """
    if not is_widened(transformer):
        raise BadInput(
            "The transformer's input is not widened: load it with hvkf's load_transformer."
        )
    if noise.shape != condition_latents_BCFHW.shape:
        raise BadInput(
            f"Noise {list(noise.shape)} and condition latents "
            f"{list(condition_latents_BCFHW.shape)} must have the same shape."
        )
    device, dtype = transformer.device, transformer.dtype
    prompt = prompt.to(device, dtype)
    condition = condition_latents_BCFHW.to(device, dtype)
    latents = noise.to(device, torch.float32)
    guidance_B = torch.full((len(latents),), guidance, dtype=dtype, device=device) * GUIDANCE_UNIT
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1].tolist(), device=device)
    euler_step: Any = scheduler.step
    if negative is not None:
        negative = negative.to(device, dtype)

    def velocity_of(prompt: PromptEmbeds, timestep: torch.Tensor, name: str) -> torch.Tensor:
        # The name lets diffusers' caches (`enable_cache`) tell this loop's calls apart.
        with transformer.cache_context(name):
            velocity: torch.Tensor = transformer(
                hidden_states=torch.cat([latents.to(dtype), condition], dim=1),
                timestep=timestep.expand(len(latents)).to(torch.float32),
                encoder_hidden_states=prompt.prompt_embeds,
                encoder_attention_mask=prompt.prompt_attention_mask,
                pooled_projections=prompt.pooled_prompt_embeds,
                guidance=guidance_B,
                return_dict=False,
            )[0]
        return velocity

    for step, timestep in enumerate(scheduler.timesteps):
        velocity = velocity_of(prompt, timestep, "cond")
        if negative is not None:
            away = velocity_of(negative, timestep, "uncond")
            velocity = away + true_cfg_scale * (velocity - away)
        # The scheduler answers in the velocity's type; float32 keeps small steps from being lost.
        latents = euler_step(velocity.float(), timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(step, latents)
    return latents
