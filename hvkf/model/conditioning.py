"""The condition of a keyframe video: an empty video that holds only the keyframes, and its latents.

Encoding the dataset and rendering both condition through this module, so that they cannot differ.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hvkf.errors import BadInput
from hvkf.model.vae import (
    Generators,
    encode_moments,
    encode_spatially,
    encode_with,
    latent_frames,
    latents_from_moments,
    part_encoder,
    pixels_for,
    temporal_tiles,
)

NUM_KEPT_SHAPES = 16

ValueT = TypeVar("ValueT")


def keyframes_of(
    frames: torch.Tensor, positions: Sequence[int] = (0, -1)
) -> dict[int, torch.Tensor]:
    """Pick keyframes [..., H, W, 3] of uint8 frames [..., F, H, W, 3], by default the two ends."""
    return {position: frames[..., position, :, :, :] for position in positions}


def condition_video(keyframes: Mapping[int, torch.Tensor], num_frames: int) -> torch.Tensor:
    """Make the empty video that holds only the keyframes, or a batch of them.

    Args:
        keyframes: Position to uint8 frames [..., H, W, 3]; negative positions count from the end.
        num_frames: F, 4k+1.

    Returns:
        uint8 frames [..., F, H, W, 3]; an empty frame is 0, so -1 after mapping to [-1, 1].

    Raises:
        BadInput: no keyframe, one outside the video, two of different sizes, F not 4k+1.
    """
    if num_frames < 1 or num_frames % 4 != 1:
        lower = max(1, (num_frames - 1) // 4 * 4 + 1)
        raise BadInput(
            f"A video of {num_frames} frames cannot be made: take 4k+1, such as {lower} or "
            f"{lower + 4}."
        )
    if not keyframes:
        raise BadInput(
            "A condition needs at least one keyframe: give the first and the last frame."
        )
    shapes = {tuple(frame.shape) for frame in keyframes.values()}
    if len(shapes) > 1:
        raise BadInput(
            f"Keyframes of one video differ in size, {sorted(shapes)}: resize them alike."
        )
    *batch, height, width, channels = shapes.pop()
    frames = torch.zeros((*batch, num_frames, height, width, channels), dtype=torch.uint8)
    for position, frame in keyframes.items():
        if not -num_frames <= position < num_frames:
            raise BadInput(
                f"The keyframe at {position} lies outside a video of {num_frames} frames: "
                f"positions go from 0 to {num_frames - 1}, or from the end with -1."
            )
        frames[..., position, :, :, :] = frame
    return frames


class EmptyMoments(NamedTuple):
    """The posterior of an all-empty video: mean and deviation, float32 [16, f, h, w] each."""

    mean: torch.Tensor
    std: torch.Tensor


class EmptyTiles:
    """The moments of tiles of condition videos, encoded once for each content and VAE.

    Equal tiles have bit-identical moments, so reuse changes nothing but the time: most temporal
    tiles of a condition video are empty (9 of 11 at 129 frames), and so are all the spatial parts
    that a large one is cut into; rows of a manifest may share keyframes. Keep one for as long as
    its VAE is loaded.
    """

    def __init__(self, vae: AutoencoderKLHunyuanVideo, *, keeps_keyframes: bool = False) -> None:
        """Keep tiles without a keyframe, and those with keyframes if told so.

        Args:
            vae: The VAE that the tiles are encoded with.
            keeps_keyframes: Worth its hashing where videos share keyframes.
        """
        self.keeps_keyframes = keeps_keyframes
        self._vae = vae
        self._encode_part = part_encoder(vae)
        self._parts: _Recent[torch.Tensor] = _Recent()
        self._tiles: _Recent[torch.Tensor] = _Recent()
        self._videos: _Recent[EmptyMoments] = _Recent()

    def moments(self, tile: torch.Tensor, content: tuple[object, ...] = ()) -> torch.Tensor:
        """Return the moments of a tile [B, 3, n, H, W], as an own copy.

        Args:
            tile: The tile.
            content: Names what is in it; an empty tile has nothing.
        """

        def encode_empty_part(part: torch.Tensor) -> torch.Tensor:
            # Blending writes into its operands.
            shape = tuple(part.shape)
            return self._parts.get(shape, lambda: self._encode_part(part.contiguous())).clone()

        encode_part = self._encode_part if content else encode_empty_part
        key = (*tile.shape, content)
        return self._tiles.get(key, lambda: encode_spatially(self._vae, tile, encode_part)).clone()

    @torch.inference_mode()
    def of_video(self, num_frames: int, height: int, width: int) -> EmptyMoments:
        """Return the posterior of an empty video of 4k+1 frames and that size in pixels."""

        def encode() -> EmptyMoments:
            vae = self._vae
            pixel = torch.full((1, 3, 1, 1, 1), -1.0, device=vae.device, dtype=vae.dtype)
            video = pixel.expand(1, 3, num_frames, height, width)
            moments = encode_moments(vae, video, lambda tile, start: self.moments(tile))
            posterior = DiagonalGaussianDistribution(moments.to(torch.float32))
            return EmptyMoments(posterior.mean[0].cpu(), posterior.std[0].cpu())

        return self._videos.get((num_frames, height, width), encode)


class _Recent(Generic[ValueT]):
    """The values made last, by shape and content."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], ValueT] = OrderedDict()

    def get(self, shape: tuple[object, ...], make: Callable[[], ValueT]) -> ValueT:
        if shape not in self._kept:
            self._kept[shape] = make()
        self._kept.move_to_end(shape)
        while len(self._kept) > NUM_KEPT_SHAPES:
            self._kept.popitem(last=False)
        return self._kept[shape]


def empty_latent_frames(
    vae: AutoencoderKLHunyuanVideo, positions: Iterable[int], num_frames: int
) -> list[int]:
    """List the latent frames of a condition video that no tile with a keyframe has touched.

    Their moments are those of an empty video of that shape, bit by bit.

    Args:
        vae: The VAE, whose tiles they are.
        positions: Where the keyframes are; negative ones count from the end.
        num_frames: F, 4k+1.
    """
    filled = {position % num_frames for position in positions}
    tiles = temporal_tiles(vae, num_frames)
    empty = [not any(frame in filled for frame in tile.frames) for tile in tiles]
    return [
        frame
        for frame in range(latent_frames(num_frames))
        if all(empty[number] for number, tile in enumerate(tiles) if frame in tile.latent_frames)
    ]


@torch.inference_mode()
def encode_condition(
    vae: AutoencoderKLHunyuanVideo,
    keyframes: Mapping[int, torch.Tensor],
    num_frames: int,
    generator: Generators | None = None,
    empty_tiles: EmptyTiles | None = None,
) -> torch.Tensor:
    """Encode the condition video of keyframes to scaled latents.

    Args:
        vae: The VAE.
        keyframes: Position to uint8 frame [H, W, 3], or to those of a batch [B, H, W, 3].
        num_frames: F, 4k+1.
        generator: Of the posterior's samples; left out, the posterior's mean is taken.
        empty_tiles: Encodings of empty tiles to reuse from earlier calls with the same VAE.

    Returns:
        float32 latents [1 or B, 16, (F-1)/4+1, H/8, W/8].
    """
    frames = condition_video(keyframes, num_frames)
    video = pixels_for(vae, frames if frames.dim() == 5 else frames.unsqueeze(0))
    placed = {position % num_frames: frame for position, frame in keyframes.items()}
    kept = empty_tiles or EmptyTiles(vae)
    names = {place: _name(frame) for place, frame in placed.items()} if kept.keeps_keyframes else {}
    encode = encode_with(vae)

    def encode_tile(tile: torch.Tensor, start: int) -> torch.Tensor:
        inside = [place for place in sorted(placed) if start <= place < start + tile.shape[2]]
        if not inside:
            return kept.moments(tile[:1]).repeat(tile.shape[0], 1, 1, 1, 1)
        if not kept.keeps_keyframes:
            return encode(tile, start)
        return kept.moments(tile, tuple((place - start, names[place]) for place in inside))

    return latents_from_moments(vae, encode_moments(vae, video, encode_tile), generator)


def _name(frame_HWC: torch.Tensor) -> bytes:
    return hashlib.sha256(frame_HWC.contiguous().cpu().numpy().tobytes()).digest()
