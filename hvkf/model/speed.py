"""What makes a transformer faster or smaller at sampling, each by its own setting."""

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.errors import BadInput
from hvkf.model.frozen import hold_frozen
from hvkf.settings.rendering import RenderSpeed

FP8 = torch.float8_e4m3fn


def apply_speed(
    transformer: HunyuanVideoTransformer3DModel, speed: RenderSpeed, device: torch.device
) -> None:
    """Prepare a transformer whose weights are final (a LoRA is fused by now).

    Raises:
        BadInput: offloading is asked for without a GPU.
    """
    if speed.fp8_layerwise:
        transformer.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=transformer.dtype)
    if speed.packed_weights is not None:
        hold_frozen(transformer, speed.packed_weights, device=device)
    if speed.group_offload:
        if device.type == "cpu":
            raise BadInput(
                "render.speed.group_offload moves weights to a GPU, and there is none here: leave "
                "it out."
            )
        transformer.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=True,
        )
    if speed.compile_blocks:
        transformer.compile_repeated_blocks()
    if speed.first_block_cache is not None:
        transformer.enable_cache(FirstBlockCacheConfig(threshold=speed.first_block_cache))
    if speed.taylorseer is not None:
        transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=speed.taylorseer))


def forget_cached(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Empty the caches of earlier steps: a new video begins, perhaps of another shape."""
    if transformer.is_cache_enabled:
        transformer._reset_stateful_cache()
