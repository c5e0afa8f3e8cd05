"""The work of the stages on meta tensors: text, VAE, the transformer's forward pass, a step."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from transformers import CLIPTextModel, LlamaModel

from hvkf.buckets import Bucket
from hvkf.estimate.counting import META, Count, Counter
from hvkf.estimate.kernels import gpu_kernels
from hvkf.model.text import (
    CLIP_SEQUENCE_LENGTH,
    MAX_SEQUENCE_LENGTH,
    NUM_PREFIX_TOKENS,
    PromptEmbeds,
)
from hvkf.model.vae import TileEncoder, decode_latents, encode_moments, encode_with, latent_frames
from hvkf.model.widening import LATENT_CHANNELS
from hvkf.training.dataset import LatentBatch
from hvkf.training.objective import batch_losses

KEYFRAME_PLACES = (0, -1)


@contextmanager
def counted(
    held: Sequence[torch.nn.Module], autocast: torch.dtype | None = None
) -> Iterator[Counter]:
    """Count what happens inside as a GPU would do it, beside modules that lie there already."""
    counter = Counter()
    for module in held:
        counter.hold(module)
    with counter, gpu_kernels(autocast):
        yield counter


def latent_shape(vae: AutoencoderKLHunyuanVideo, bucket: Bucket) -> tuple[int, int, int]:
    """Give a bucket's latent frames, rows and columns."""
    ratio = vae.spatial_compression_ratio
    return (latent_frames(bucket.num_frames), bucket.height // ratio, bucket.width // ratio)


def count_text(
    llama: LlamaModel,
    clip: CLIPTextModel,
    held: Sequence[torch.nn.Module],
    batch_size: int = 1,
) -> Count:
    """Count the encoding of captions of the full length, so many together."""
    with torch.no_grad(), counted(held) as counter:
        length = MAX_SEQUENCE_LENGTH + NUM_PREFIX_TOKENS
        ids = torch.empty((batch_size, length), dtype=torch.long, device=META)
        # The angles of positions: its own code asks for an autocast that meta tensors have not.
        angles = torch.empty((1, length, llama.config.head_dim), dtype=llama.dtype, device=META)
        llama.rotary_emb.forward = lambda *_: (angles, angles)
        llama(input_ids=ids, use_cache=False)
        del llama.rotary_emb.forward
    with torch.no_grad(), counted(held) as of_clip:
        # Which token ends the caption is a value, which meta tensors lack: only the layers run.
        states = clip.text_model.embeddings(
            torch.empty((batch_size, CLIP_SEQUENCE_LENGTH), dtype=torch.long, device=META)
        )
        clip.text_model.encoder(inputs_embeds=states)
    return counter.count + of_clip.count


def count_vae_encode(
    vae: AutoencoderKLHunyuanVideo,
    bucket: Bucket,
    held: Sequence[torch.nn.Module],
    batch_size: int = 1,
) -> Count:
    """Count the encoding of whole videos, so many together."""
    return _count_encode(vae, bucket, held, batch_size, None)


def count_condition(
    vae: AutoencoderKLHunyuanVideo,
    bucket: Bucket,
    held: Sequence[torch.nn.Module],
    batch_size: int = 1,
) -> Count:
    """Count the encoding of conditions' videos whose empty tiles are known already."""
    filled = {place % bucket.num_frames for place in KEYFRAME_PLACES}
    encode = encode_with(vae)
    ratio = vae.spatial_compression_ratio

    def encode_tile(tile: torch.Tensor, start: int) -> torch.Tensor:
        length = tile.shape[2]
        if filled.intersection(range(start, start + length)):
            return encode(tile, start)
        height, width = (side // ratio for side in tile.shape[3:])
        channels = 2 * LATENT_CHANNELS
        return tile.new_empty((batch_size, channels, latent_frames(length), height, width))

    return _count_encode(vae, bucket, held, batch_size, encode_tile)


def _count_encode(
    vae: AutoencoderKLHunyuanVideo,
    bucket: Bucket,
    held: Sequence[torch.nn.Module],
    batch_size: int,
    encode_tile: TileEncoder | None,
) -> Count:
    shape = (batch_size, 3, bucket.num_frames, bucket.height, bucket.width)
    with torch.no_grad(), counted(held) as counter, _each_tile_once(counter, vae):
        video = torch.empty(shape, dtype=vae.dtype, device=META)
        encode_moments(vae, video, encode_tile)
    return counter.count


def count_vae_decode(
    vae: AutoencoderKLHunyuanVideo, bucket: Bucket, held: Sequence[torch.nn.Module]
) -> Count:
    """Count the decoding of latents to uint8 frames."""
    shape = (1, LATENT_CHANNELS, *latent_shape(vae, bucket))
    with counted(held) as counter, _each_tile_once(counter, vae):
        decode_latents(vae, torch.empty(shape, device=META))
    return counter.count


@contextmanager
def _each_tile_once(counter: Counter, vae: Any) -> Iterator[None]:
    """Run the VAE's networks once per shape of tile, and leave the blending of pixels out.

    A long video has hundreds of tiles of few shapes, and blends them in place, line by line.
    """
    changed = [
        (vae.encoder, "forward", counter.once_per_shape(vae.encoder.forward)),
        (vae.decoder, "forward", counter.once_per_shape(vae.decoder.forward)),
        *((vae, name, _unblended) for name in ("blend_v", "blend_h", "blend_t")),
    ]
    for owner, name, function in changed:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, _ in changed:
            delattr(owner, name)


def _unblended(before: torch.Tensor, tile: torch.Tensor, extent: int) -> torch.Tensor:
    return tile


def count_velocity(
    transformer: HunyuanVideoTransformer3DModel,
    latent: tuple[int, int, int],
    batch_size: int,
    held: Sequence[torch.nn.Module],
) -> Count:
    """Count one pass of the sampler's transformer over rows of latent frames, rows, columns."""
    dtype = transformer.dtype
    shape = (batch_size, LATENT_CHANNELS, *latent)
    with torch.no_grad(), counted(held) as counter:
        latents = torch.empty(shape, device=META)
        # The last step's velocity, which is kept until the next is there.
        velocity, condition = (torch.empty(shape, dtype=dtype, device=META) for _ in range(2))
        prompt = _prompt(transformer, batch_size, dtype)
        velocity = transformer(
            hidden_states=torch.cat([latents.to(dtype), condition], dim=1),
            timestep=torch.empty(batch_size, device=META),
            encoder_hidden_states=prompt.prompt_embeds,
            encoder_attention_mask=prompt.prompt_attention_mask,
            pooled_projections=prompt.pooled_prompt_embeds,
            guidance=torch.empty(batch_size, dtype=dtype, device=META),
            return_dict=False,
        )[0]
        latents = latents + velocity.float()
    return counter.count


def count_step(
    transformer: HunyuanVideoTransformer3DModel,
    latent: tuple[int, int, int],
    batch_size: int,
    *,
    dtype: torch.dtype,
    stored: torch.dtype,
    has_gradients: bool,
) -> Count:
    """Count the forward and backward pass of one micro-batch, with the gradients it leaves.

    Args:
        transformer: With its LoRA, in training mode.
        latent: Latent frames, rows and columns.
        batch_size: Samples.
        dtype: Of the base weights; one of 16 bits is computed under autocast, as accelerate does.
        stored: In which latents and embeddings come.
        has_gradients: Whether an earlier micro-batch of the step has left gradients.
    """
    trained = [weight for weight in transformer.parameters() if weight.requires_grad]
    with counted([transformer], None if dtype == torch.float32 else dtype) as counter:
        if has_gradients:
            for weight in trained:
                weight.grad = torch.empty_like(weight)
        batch = _batch(transformer, latent, batch_size, stored)

        def predict(**inputs: Any) -> tuple[torch.Tensor]:
            return (transformer(**inputs)[0].float(),)  # accelerate's answer is float32

        losses = batch_losses(predict, batch, dtype=dtype, guidance=1.0, weighting="none")
        losses.mean().backward()
    for weight in trained:
        weight.grad = None
    return counter.count


def off_the_gpu() -> AbstractContextManager[object]:
    """Save what is kept for the backward pass where it does not count, as `in_main_memory`."""

    def leave(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
        return tensor.shape, tensor.dtype

    def fetch(left: tuple[torch.Size, torch.dtype]) -> torch.Tensor:
        shape, dtype = left
        return torch.empty(shape, dtype=dtype, device=META)

    return torch.autograd.graph.saved_tensors_hooks(leave, fetch)


def _batch(
    transformer: HunyuanVideoTransformer3DModel,
    latent: tuple[int, int, int],
    size: int,
    dtype: torch.dtype,
) -> LatentBatch:
    shape = (size, LATENT_CHANNELS, *latent)
    return LatentBatch(
        keys=(),
        latents=torch.empty(shape, device=META),
        condition=torch.empty(shape, dtype=dtype, device=META),
        noise=torch.empty(shape, device=META),
        sigmas=torch.empty(size, device=META),
        prompt=_prompt(transformer, size, dtype),
    )


def _prompt(
    transformer: HunyuanVideoTransformer3DModel, size: int, dtype: torch.dtype
) -> PromptEmbeds:
    config, text = transformer.config, (size, MAX_SEQUENCE_LENGTH)
    return PromptEmbeds(
        torch.empty((*text, config["text_embed_dim"]), dtype=dtype, device=META),
        torch.empty(text, dtype=torch.long, device=META),
        torch.empty((size, config["pooled_projection_dim"]), dtype=dtype, device=META),
    )
