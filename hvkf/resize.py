"""Scales a frame until it covers a size, then cuts out its centre: the reference's inference way.

Enlarging is PIL's Lanczos filter and shrinking is OpenCV's area average. The reference's caching
tool leaves the scaling out when one side already fits, and so stores frames of a few rows.
"""

from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_COVER_PIXELS = 2**26
"""Above this (192 MB of RGB) an enlarged frame is not made whole before its centre is cut out."""


def resize_to_cover(frame_HWC: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Scale a frame to cover `width` x `height` pixels and crop its centre.

    The covering size is rounded half upwards. A frame so narrow that its covering size exceeds
    `MAX_COVER_PIXELS` has only its centre enlarged, which may differ by one level.

    Args:
        frame_HWC: uint8 RGB, any size of at least 1x1.
        width: wanted width in pixels.
        height: wanted height in pixels.

    Returns:
        A contiguous uint8 array of exactly (height, width, 3); the frame itself if it fits already.

    Raises:
        ValueError: the frame is not (H, W, 3) of uint8, is empty, or a wanted side is under 1.
    """
    if frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3 or frame_HWC.dtype != np.uint8:
        raise ValueError(f"not an RGB frame of bytes: {frame_HWC.shape} {frame_HWC.dtype}")
    frame_height, frame_width = frame_HWC.shape[:2]
    if min(frame_height, frame_width, width, height) < 1:
        raise ValueError(f"cannot scale {frame_width}x{frame_height} to {width}x{height}")

    scale = max(width / frame_width, height / frame_height)
    cover_width = int(frame_width * scale + 0.5)
    cover_height = int(frame_height * scale + 0.5)
    left = (cover_width - width) // 2
    top = (cover_height - height) // 2

    if (cover_width, cover_height) == (frame_width, frame_height):
        cover_HWC = frame_HWC
    elif scale < 1:
        cover_HWC = _shrink(frame_HWC, cover_width, cover_height)
    elif cover_width * cover_height <= MAX_COVER_PIXELS:
        cover_HWC = _enlarge(frame_HWC, cover_width, cover_height)
    else:
        return _enlarge_part(frame_HWC, (cover_width, cover_height), (left, top, width, height))
    return np.ascontiguousarray(cover_HWC[top : top + height, left : left + width])


def _shrink(frame_HWC: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    cv2 = _opencv()
    frame_HWC = np.ascontiguousarray(frame_HWC)
    shrunk_HWC: NDArray[np.uint8] = cv2.resize(
        frame_HWC, (width, height), interpolation=cv2.INTER_AREA
    )
    return shrunk_HWC


@cache
def _opencv() -> ModuleType:
    import cv2  # not in the image that plans

    # Workers are the parallelism: its own threads would take the cores of what goes on beside.
    cv2.setNumThreads(1)
    return cv2


def _enlarge(frame_HWC: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def _enlarge_part(
    frame_HWC: NDArray[np.uint8], cover: tuple[int, int], part: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """Make only the (left, top, width, height) part of the enlarged frame of size `cover`."""
    left, top, width, height = part
    across, down = frame_HWC.shape[1] / cover[0], frame_HWC.shape[0] / cover[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))
