"""Transparent pictures: finding them, and laying them over white, as keyframes are."""

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray

# Matroska keeps the transparency of VP8 and VP9 beside the picture: libav's own decoders, which are
# the usual ones, do not look there.
ALPHA_DECODERS = {
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
    "libvpx": "libvpx",
    "libvpx-vp9": "libvpx-vp9",
}
WHITE = 255


def has_alpha(pixel_format: VideoFormat) -> bool:
    """Whether pictures of this format can be transparent; a palette's colours may be."""
    return pixel_format.has_palette or any(part.is_alpha for part in pixel_format.components)


def alpha_of(frame: VideoFrame) -> NDArray[np.uint8]:
    """Read the transparency [H, W] of a frame: 0 shows nothing of it, 255 nothing else."""
    rgba = frame.reformat(format="rgba", threads=1).to_ndarray()
    return rgba[..., 3].astype(np.uint8, copy=False)


def is_transparent(frame: VideoFrame) -> bool:
    """Whether something behind the frame would be seen."""
    return bool(alpha_of(frame).min() < WHITE)


def over_white(rgb_HWC: NDArray[np.uint8], alpha_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a picture over white; halves round upwards."""
    alpha = alpha_HW[..., None].astype(np.uint32)
    mixed = rgb_HWC * alpha + WHITE * (WHITE - alpha)
    return ((2 * mixed + WHITE) // (2 * WHITE)).astype(np.uint8)
