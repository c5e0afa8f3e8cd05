"""The condition of a keyframe video: an empty video that holds only the keyframes, and its latents.

Encoding the dataset and rendering both condition through this module, so that they cannot differ.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

from hvkf.errors import BadInput
from hvkf.model.vae import encode_moments, encode_with, latents_from_moments, to_pixels_range

NUM_KEPT_SHAPES = 16


def keyframes_of(
    frames: torch.Tensor, positions: Sequence[int] = (0, -1)
) -> dict[int, torch.Tensor]:
    """Pick the keyframes [H, W, 3] of uint8 frames [F, H, W, 3], by default the first and last."""
    return {position: frames[position] for position in positions}


def condition_video(keyframes: Mapping[int, torch.Tensor], num_frames: int) -> torch.Tensor:
    """Make the empty video that holds only the keyframes.

    Args:
        keyframes: Position to uint8 frame [H, W, 3]; negative positions count from the end.
        num_frames: F, 4k+1.

    Returns:
        uint8 frames [F, H, W, 3]; an empty frame is 0, so -1 after mapping to [-1, 1].

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
    height, width, channels = shapes.pop()
    frames = torch.zeros((num_frames, height, width, channels), dtype=torch.uint8)
    for position, frame in keyframes.items():
        if not -num_frames <= position < num_frames:
            raise BadInput(
                f"The keyframe at {position} lies outside a video of {num_frames} frames: "
                f"positions go from 0 to {num_frames - 1}, or from the end with -1."
            )
        frames[position] = frame
    return frames


class EmptyTiles:
    """The moments of temporal tiles without a keyframe, encoded once per shape and VAE.

    Equal tiles have bit-identical moments, so reuse changes nothing but the time: most tiles of a
    condition video are empty (9 of 11 at 129 frames). Keep one for as long as its VAE is loaded.
    """

    def __init__(self, vae: AutoencoderKLHunyuanVideo) -> None:
        self._encode = encode_with(vae)
        self._kept: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()

    def moments(self, tile: torch.Tensor) -> torch.Tensor:
        """Return the moments of an empty tile [1, 3, n, H, W] of that shape, as an own copy."""
        shape = tuple(tile.shape)
        if shape not in self._kept:
            self._kept[shape] = self._encode(tile, 0)
        self._kept.move_to_end(shape)
        while len(self._kept) > NUM_KEPT_SHAPES:
            self._kept.popitem(last=False)
        # Blending writes into its operands.
        return self._kept[shape].clone()


@torch.inference_mode()
def encode_condition(
    vae: AutoencoderKLHunyuanVideo,
    keyframes: Mapping[int, torch.Tensor],
    num_frames: int,
    generator: torch.Generator | None = None,
    empty_tiles: EmptyTiles | None = None,
) -> torch.Tensor:
    """Encode the condition video of keyframes to scaled latents.

    Args:
        vae: The VAE.
        keyframes: Position to uint8 frame [H, W, 3].
        num_frames: F, 4k+1.
        generator: CPU generator of the posterior sample; left out, the posterior's mean is taken.
        empty_tiles: Encodings of empty tiles to reuse from earlier calls with the same VAE.

    Returns:
        float32 latents [1, 16, (F-1)/4+1, H/8, W/8].
    """
    video = to_pixels_range(condition_video(keyframes, num_frames))
    positions = [position % num_frames for position in keyframes]
    kept = empty_tiles or EmptyTiles(vae)
    encode = encode_with(vae)

    def encode_tile(tile: torch.Tensor, start: int) -> torch.Tensor:
        end = start + tile.shape[2]
        if any(start <= position < end for position in positions):
            return encode(tile, start)
        return kept.moments(tile)

    return latents_from_moments(vae, encode_moments(vae, video, encode_tile), generator)
