"""Pixels to latents and back, with the reference's scaling."""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

TileEncoder = Callable[[torch.Tensor, int], torch.Tensor]


def to_pixels_range(frames: torch.Tensor) -> torch.Tensor:
    """Map uint8 frames [F, H, W, 3] to a float32 video [1, 3, F, H, W] in [-1, 1]."""
    video_CFHW = frames.permute(3, 0, 1, 2).to(torch.float32)
    return ((video_CFHW / 255.0 - 0.5) / 0.5).unsqueeze(0).contiguous()


def to_frames(video: torch.Tensor) -> torch.Tensor:
    """Map a video [1, 3, F, H, W] in [-1, 1] to uint8 frames [F, H, W, 3] on the CPU."""
    pixels_FHWC = (video[0].to(torch.float32) * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
    return (pixels_FHWC * 255.0).round().to(torch.uint8).cpu().contiguous()


@torch.inference_mode()
def encode_video(
    vae: AutoencoderKLHunyuanVideo,
    video: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Encode a video to scaled latents.

    Args:
        vae: The VAE; it computes in its own type.
        video: [1, 3, F, H, W] in [-1, 1], F = 4k+1, H and W divisible by 8.
        generator: CPU generator of the posterior sample; left out, the posterior's mean is taken.

    Returns:
        float32 latents [1, 16, (F-1)/4+1, H/8, W/8], times the VAE's scaling factor.
    """
    return latents_from_moments(vae, encode_moments(vae, video), generator)


def latents_from_moments(
    vae: AutoencoderKLHunyuanVideo,
    moments: torch.Tensor,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Sample the posterior of moments [1, 32, f, h, w], or take its mean, and scale it."""
    posterior = DiagonalGaussianDistribution(moments.to(torch.float32))
    latents: torch.Tensor = posterior.mean
    if generator is not None:
        noise = torch.randn(latents.shape, generator=generator)
        latents = latents + posterior.std * noise.to(latents.device)
    return latents * _scaling_factor(vae)


def encode_moments(
    vae: AutoencoderKLHunyuanVideo,
    video: torch.Tensor,
    encode_tile: TileEncoder | None = None,
) -> torch.Tensor:
    """Encode a video to its posterior's moments, equal to diffusers' `vae.encode` bit by bit.

    diffusers cuts more than 16 frames into temporal tiles of 17, one every 12, and blends them; a
    last tile of one frame is encoded there and thrown away, here it is left out.

    Args:
        vae: The VAE.
        video: [1, 3, F, H, W] in [-1, 1].
        encode_tile: Encodes a temporal tile, given its first frame's index; its result is
            written to. Left out, every tile is encoded.

    Returns:
        Moments [1, 32, (F-1)/4+1, H/8, W/8] in the VAE's type.
    """
    video = video.to(device=vae.device, dtype=vae.dtype)
    if encode_tile is None:
        encode_tile = encode_with(vae)
    num_frames = video.shape[2]
    if num_frames <= vae.tile_sample_min_num_frames:
        return encode_tile(video, 0)
    stride = vae.tile_sample_stride_num_frames
    starts = [
        start for start in range(0, num_frames, stride) if start == 0 or num_frames - start > 1
    ]
    tiles = []
    for start in starts:
        tile = video[:, :, start : start + vae.tile_sample_min_num_frames + 1]
        moments = encode_tile(tile, start)
        # The first latent of a later tile saw one frame only: it gives way to its predecessor's.
        tiles.append(moments if start == 0 else moments[:, :, 1:])
    return _blend_temporally(vae, tiles)[:, :, : latent_frames(num_frames)]


def encode_with(vae: AutoencoderKLHunyuanVideo) -> TileEncoder:
    """Make the encoder of one temporal tile, with diffusers' spatial tiling where it is large."""

    def encode_tile(tile: torch.Tensor, start: int) -> torch.Tensor:
        height, width = tile.shape[-2:]
        is_large = height > vae.tile_sample_min_height or width > vae.tile_sample_min_width
        if vae.use_tiling and is_large:
            # Declared to return the output class, it returns the tensor.
            return cast(torch.Tensor, vae.tiled_encode(tile))
        moments: torch.Tensor = vae.quant_conv(vae.encoder(tile))
        return moments

    return encode_tile


def latent_frames(num_frames: int) -> int:
    """Count the latent frames of a video of 4k+1 frames."""
    return (num_frames - 1) // 4 + 1


def _blend_temporally(vae: AutoencoderKLHunyuanVideo, tiles: list[torch.Tensor]) -> torch.Tensor:
    ratio = vae.temporal_compression_ratio
    stride = vae.tile_sample_stride_num_frames // ratio
    overlap = vae.tile_sample_min_num_frames // ratio - stride
    kept = [tiles[0][:, :, : stride + 1]]
    for previous, tile in pairwise(tiles):
        kept.append(vae.blend_t(previous, tile, overlap)[:, :, :stride])
    return torch.cat(kept, dim=2)


@torch.inference_mode()
def decode_latents(vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor) -> torch.Tensor:
    """Decode scaled latents [1, 16, f, h, w] to uint8 frames [4(f-1)+1, 8h, 8w, 3] on the CPU."""
    unscaled = latents.to(device=vae.device, dtype=vae.dtype) / _scaling_factor(vae)
    return to_frames(vae.decode(unscaled, return_dict=False)[0])


def _scaling_factor(vae: AutoencoderKLHunyuanVideo) -> float:
    return float(vae.config["scaling_factor"])
