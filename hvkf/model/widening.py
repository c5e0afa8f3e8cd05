"""Widening the transformer's input so that it reads noisy latents and condition latents together.

Method: the reference's; the new weights are zero, so the widened model begins as the original one.
"""

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.errors import BadInput

LATENT_CHANNELS = 16
INPUT_CHANNELS = 2 * LATENT_CHANNELS


def is_widened(transformer: HunyuanVideoTransformer3DModel) -> bool:
    """Whether the patch embedding reads 32 channels: [noisy latents, condition latents]."""
    layer = transformer.x_embedder.proj
    # A LoRA wraps the layer.
    channels: int = getattr(layer, "base_layer", layer).in_channels
    return channels == INPUT_CHANNELS


def widen_input(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Widen `x_embedder.proj` from 16 to 32 input channels in place; do nothing if it is wide.

    Raises:
        BadInput: the patch embedding reads neither 16 nor 32 channels.
    """
    if is_widened(transformer):
        return
    narrow = transformer.x_embedder.proj
    if narrow.in_channels != LATENT_CHANNELS:
        raise BadInput(
            f"The transformer's input has {narrow.in_channels} channels where HunyuanVideo's "
            f"text-to-video model has {LATENT_CHANNELS}: take hunyuanvideo-community/HunyuanVideo "
            "or a finetune of it."
        )
    # Everything of the layer but its width (kernel, stride, bias, device) stays as it is.
    new_weights = torch.zeros_like(narrow.weight)
    narrow.weight = torch.nn.Parameter(
        torch.cat([narrow.weight.detach(), new_weights], dim=1),
        requires_grad=narrow.weight.requires_grad,
    )
    narrow.in_channels = INPUT_CHANNELS
    transformer.register_to_config(in_channels=INPUT_CHANNELS, out_channels=LATENT_CHANNELS)
