"""Batches of latents, made up."""

from typing import Any

import torch

from hvkf.buckets import Bucket
from hvkf.model.text import PromptEmbeds
from hvkf.training.dataset import LatentBatch


def latent_batch(bucket: Bucket, size: int, transformer: Any) -> LatentBatch:
    """Make a batch of a bucket's size for a transformer."""
    shape = (size, 16, (bucket.num_frames - 1) // 4 + 1, bucket.height // 8, bucket.width // 8)
    draws = torch.Generator().manual_seed(1)
    latents, condition, noise = (torch.randn(shape, generator=draws) for _ in range(3))
    text = torch.randn((size, 256, transformer.config["text_embed_dim"]), generator=draws)
    pooled = torch.randn((size, transformer.config["pooled_projection_dim"]), generator=draws)
    return LatentBatch(
        keys=(),
        latents=latents,
        condition=condition,
        noise=noise,
        sigmas=torch.full((size,), 0.5),
        prompt=PromptEmbeds(text, torch.ones((size, 256), dtype=torch.int64), pooled),
    )
