"""Pixels to latents and back, with the reference's scaling."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor

TileEncoder = Callable[[torch.Tensor, int], torch.Tensor]
PartEncoder = Callable[[torch.Tensor], torch.Tensor]
Generators = torch.Generator | Sequence[torch.Generator]
"""Of the posterior's samples, on the CPU: one for a video, or one for each video of a batch."""


class TemporalTile(NamedTuple):
    """Frames that are encoded together, and the latent frames that they have a part in."""

    frames: range
    latent_frames: range


def to_pixels_range(frames: torch.Tensor) -> torch.Tensor:
    """Map uint8 frames [F, H, W, 3] to a float32 video [1, 3, F, H, W] in [-1, 1]."""
    video_CFHW = frames.permute(3, 0, 1, 2).to(torch.float32)
    return ((video_CFHW / 255.0 - 0.5) / 0.5).unsqueeze(0).contiguous()


def pixels_for(vae: AutoencoderKLHunyuanVideo, frames: torch.Tensor) -> torch.Tensor:
    """Map uint8 frames [B, F, H, W, 3] to the VAE's input [B, 3, F, H, W] on its device.

    One video after the other: main memory holds no more than one in float32, and the device no
    video twice.
    """
    shape = (len(frames), frames.shape[-1], *frames.shape[1:-1])
    videos = torch.empty(shape, dtype=vae.dtype, device=vae.device)
    for place, video in zip(videos, frames, strict=True):
        place.copy_(to_pixels_range(video)[0])
    return videos


def to_frames(video: torch.Tensor) -> torch.Tensor:
    """Map a video [1, 3, F, H, W] in [-1, 1] to uint8 frames [F, H, W, 3] on the CPU."""
    pixels_FHWC = (video[0].to(torch.float32) * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
    return (pixels_FHWC * 255.0).round().to(torch.uint8).cpu().contiguous()


@torch.inference_mode()
def encode_video(
    vae: AutoencoderKLHunyuanVideo,
    video: torch.Tensor,
    generator: Generators | None = None,
) -> torch.Tensor:
    """Encode videos of one shape to scaled latents.

    The last bits of a video's latents may be others in another batch: convolutions choose how they
    sum up by the shape.

    Args:
        vae: The VAE; it computes in its own type.
        video: [B, 3, F, H, W] in [-1, 1], F = 4k+1, H and W divisible by 8.
        generator: Of the posterior's samples; left out, the posterior's mean is taken.

    Returns:
        float32 latents [B, 16, (F-1)/4+1, H/8, W/8], times the VAE's scaling factor.
    """
    return latents_from_moments(vae, encode_moments(vae, video), generator)


def latents_from_moments(
    vae: AutoencoderKLHunyuanVideo,
    moments: torch.Tensor,
    generator: Generators | None,
) -> torch.Tensor:
    """Sample the posterior of moments [B, 32, f, h, w], or take its mean, and scale it."""
    posterior = DiagonalGaussianDistribution(moments.to(torch.float32))
    latents: torch.Tensor = posterior.mean
    if generator is not None:
        generators = generator if isinstance(generator, torch.Generator) else list(generator)
        noise = randn_tensor(latents.shape, generator=generators, dtype=torch.float32)
        latents = latents + posterior.std * noise.to(latents.device)
    return latents * _scaling_factor(vae)


def encode_moments(
    vae: AutoencoderKLHunyuanVideo,
    video: torch.Tensor,
    encode_tile: TileEncoder | None = None,
) -> torch.Tensor:
    """Encode videos to their posterior's moments, equal to diffusers' `vae.encode` bit by bit.

    diffusers cuts more than 16 frames into temporal tiles of 17, one every 12, and blends them. A
    last tile of one frame is encoded there and thrown away, and one of five is blended in with
    weight 0: here both are left out.

    Args:
        vae: The VAE.
        video: [B, 3, F, H, W] in [-1, 1].
        encode_tile: Encodes a temporal tile, given its first frame's index; its result is
            written to. Left out, every tile is encoded.

    Returns:
        Moments [B, 32, (F-1)/4+1, H/8, W/8] in the VAE's type.
    """
    video = video.to(device=vae.device, dtype=vae.dtype)
    if encode_tile is None:
        encode_tile = encode_with(vae)
    num_frames = video.shape[2]
    tiles = []
    for frames, _ in temporal_tiles(vae, num_frames):
        moments = encode_tile(video[:, :, frames.start : frames.stop], frames.start)
        # The first latent of a later tile saw one frame only: it gives way to its predecessor's.
        tiles.append(moments if frames.start == 0 else moments[:, :, 1:])
    return _blend_temporally(vae, tiles)[:, :, : latent_frames(num_frames)]


def temporal_tiles(vae: AutoencoderKLHunyuanVideo, num_frames: int) -> list[TemporalTile]:
    """List the tiles that a video of 4k+1 frames is cut into along time."""
    if num_frames <= vae.tile_sample_min_num_frames:
        return [TemporalTile(range(num_frames), range(latent_frames(num_frames)))]
    length, stride = vae.tile_sample_min_num_frames + 1, vae.tile_sample_stride_num_frames
    ratio = vae.temporal_compression_ratio
    tiles = []
    for start in range(0, num_frames, stride):
        frames = range(start, min(start + length, num_frames))
        # The first two latents of a later tile give way: one to its predecessor's end, and the next
        # is blended in with weight 0. A tile of 5 frames or fewer has nothing else.
        first = start // ratio + 2 if start else 0
        end = start // ratio + latent_frames(len(frames))
        if first < end:
            tiles.append(TemporalTile(frames, range(first, end)))
    return tiles


def set_tile(vae: AutoencoderKLHunyuanVideo, side: int) -> None:
    """Cut frames into tiles of this side in pixels, a quarter of which overlaps as in diffusers."""
    stride = side * 3 // 4
    vae.enable_tiling(
        tile_sample_min_height=side,
        tile_sample_min_width=side,
        tile_sample_stride_height=stride,
        tile_sample_stride_width=stride,
    )


def encode_with(vae: AutoencoderKLHunyuanVideo) -> TileEncoder:
    """Make the encoder of one temporal tile, with diffusers' spatial tiling where it is large."""

    encode_part = part_encoder(vae)

    def encode_tile(tile: torch.Tensor, start: int) -> torch.Tensor:
        return encode_spatially(vae, tile, encode_part)

    return encode_tile


def encode_spatially(
    vae: AutoencoderKLHunyuanVideo, tile: torch.Tensor, encode_part: PartEncoder
) -> torch.Tensor:
    """Encode a temporal tile as `vae.tiled_encode` does where it is large, and whole elsewhere.

    Args:
        vae: The VAE.
        tile: [B, 3, n, H, W] in the VAE's type.
        encode_part: Encodes a part of it; its result is written to.

    Returns:
        Moments [B, 32, (n-1)/4+1, H/8, W/8].
    """
    height, width = tile.shape[-2:]
    is_large = height > vae.tile_sample_min_height or width > vae.tile_sample_min_width
    if not (vae.use_tiling and is_large):
        return encode_part(tile)
    side = (vae.tile_sample_min_height, vae.tile_sample_min_width)
    stride = (vae.tile_sample_stride_height, vae.tile_sample_stride_width)
    rows = [
        [
            encode_part(tile[..., top : top + side[0], left : left + side[1]])
            for left in range(0, width, stride[1])
        ]
        for top in range(0, height, stride[0])
    ]
    ratio = vae.spatial_compression_ratio
    kept_height, kept_width = stride[0] // ratio, stride[1] // ratio
    overlap = (side[0] // ratio - kept_height, side[1] // ratio - kept_width)
    kept = [
        [
            _blend_spatially(vae, rows, y, x, overlap)[..., :kept_height, :kept_width]
            for x in range(len(row))
        ]
        for y, row in enumerate(rows)
    ]
    return torch.cat([torch.cat(row, dim=4) for row in kept], dim=3)


def _blend_spatially(
    vae: AutoencoderKLHunyuanVideo,
    rows: list[list[torch.Tensor]],
    y: int,
    x: int,
    overlap: tuple[int, int],
) -> torch.Tensor:
    """Blend a part with those above and to the left of it, which are blended already."""
    part = rows[y][x]
    if y:
        part = vae.blend_v(rows[y - 1][x], part, overlap[0])
    if x:
        part = vae.blend_h(rows[y][x - 1], part, overlap[1])
    return part


def part_encoder(vae: AutoencoderKLHunyuanVideo) -> PartEncoder:
    """Make the encoder of what goes through the network in one piece."""

    def encode_part(part: torch.Tensor) -> torch.Tensor:
        moments: torch.Tensor = vae.quant_conv(vae.encoder(part))
        return moments

    return encode_part


def latent_frames(num_frames: int) -> int:
    """Count the latent frames of a video of 4k+1 frames."""
    return (num_frames - 1) // 4 + 1


def _blend_temporally(vae: AutoencoderKLHunyuanVideo, tiles: list[torch.Tensor]) -> torch.Tensor:
    ratio = vae.temporal_compression_ratio
    stride = vae.tile_sample_stride_num_frames // ratio
    overlap = vae.tile_sample_min_num_frames // ratio - stride
    # The last tile keeps its end: a tile behind it that is left out would have begun with that.
    kept = [tiles[0]]
    for previous, tile in pairwise(tiles):
        kept[-1] = kept[-1][:, :, : stride + (len(kept) == 1)]
        kept.append(vae.blend_t(previous, tile, overlap))
    return torch.cat(kept, dim=2)


@torch.inference_mode()
def decode_latents(vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor) -> torch.Tensor:
    """Decode scaled latents [1, 16, f, h, w] to uint8 frames [4(f-1)+1, 8h, 8w, 3] on the CPU."""
    unscaled = latents.to(device=vae.device, dtype=vae.dtype) / _scaling_factor(vae)
    return to_frames(vae.decode(unscaled, return_dict=False)[0])


def _scaling_factor(vae: AutoencoderKLHunyuanVideo) -> float:
    return float(vae.config["scaling_factor"])
