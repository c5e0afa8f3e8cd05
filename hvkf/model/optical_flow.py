"""How far a video's frames are from following the motion that they show.

Shape suffixes: F frames, H rows, W columns, C colour channels.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.registration import optical_flow_ilk
from skimage.transform import resize, warp

Array = NDArray[np.float64]

LEVELS = 255.0
FLOW_SIDE = 128
"""Longer side at which optical flow is computed: a video of any size takes about as long."""
FLOW_RADIUS = 4


def flow_warp_error(frames_FHWC: NDArray[np.uint8]) -> float:
    """Mean squared error of each frame against the next one warped back, values in [0, 1].

    The warping error of Lai et al. 2018 ("Learning Blind Video Temporal Consistency"), with the
    flow of iterative Lucas-Kanade and without their mask of what is covered: a shape's trailing
    edge costs a little in a true clip as well, so compare with the truth's.

    Args:
        frames_FHWC: uint8 frames; larger ones are shrunk to 128 pixels first.
    """
    small = [shrunk(frame) for frame in frames_FHWC]
    errors = [_warp_error(here, there) for here, there in pairwise(small)]
    return float(np.mean(errors)) if errors else 0.0


def shrunk(frame_HWC: NDArray[np.uint8]) -> Array:
    """Values in [0, 1], the longer side at most 128 pixels."""
    height, width = frame_HWC.shape[:2]
    scale = min(1.0, FLOW_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return np.asarray(resize(frame_HWC / LEVELS, size, anti_aliasing=scale < 1))


def _warp_error(here_HWC: Array, there_HWC: Array) -> float:
    rows, columns = optical_flow_ilk(rgb2gray(here_HWC), rgb2gray(there_HWC), radius=FLOW_RADIUS)
    places = np.meshgrid(*map(np.arange, here_HWC.shape[:2]), indexing="ij")
    back = np.array([places[0] + rows, places[1] + columns])
    warped = np.stack(
        [warp(there_HWC[..., channel], back, mode="edge") for channel in range(3)], axis=-1
    )
    return float(np.mean((warped - here_HWC) ** 2))
