"""What a video looks like in motion: flicker, jumps, drift, and how near it is to trivial answers.

Shape suffixes: F frames, H rows, W columns, C colour channels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Array = NDArray[np.float64]

STILL_LEVELS = 0.5
"""Two frames whose mean difference is below half a level of 255 look the same."""
SMALLEST_STEP = 0.5
"""Levels; below it a usual step is taken as this, lest a still video has infinite jumps."""


def frame_steps(frames_FHWC: Frames) -> Array:
    """Mean absolute difference of neighbours in levels, holding two frames as wide integers."""
    steps = []
    before = frames_FHWC[0].astype(np.int16)
    for frame in frames_FHWC[1:]:
        after = frame.astype(np.int16)
        steps.append(float(np.abs(after - before).mean()))
        before = after
    return np.array(steps)


def end_jump(steps: Array) -> float:
    """The last step as a multiple of the median step."""
    if not len(steps):
        return 0.0
    return float(steps[-1]) / max(float(np.median(steps)), SMALLEST_STEP)


def colour_drift(frames_FHWC: Frames, keyframes: Sequence[int]) -> float:
    """The furthest that a frame's mean colour is from the line between its keyframes'."""
    colours_FC = np.array([frame.reshape(-1, 3).mean(axis=0) for frame in frames_FHWC])
    times = np.arange(len(frames_FHWC))
    drifts = [
        np.abs(colours_FC[:, channel] - np.interp(times, keyframes, colours_FC[keyframes, channel]))
        for channel in range(3)
    ]
    return float(np.max(drifts))


def longest_still(steps: Array) -> float:
    """The share of the steps that the longest run of still ones has."""
    longest = current = 0
    for is_still in steps < STILL_LEVELS:
        current = current + 1 if is_still else 0
        longest = max(longest, current)
    return longest / max(1, len(steps))


def cross_fade_share(frames_FHWC: Frames) -> float:
    """How much of what lies between the ends a blend of them explains, each frame its own.

    What is to be explained is each frame's distance from the nearer end. A still video leaves
    nothing to explain: 0.
    """
    first, last = frames_FHWC[0].astype(np.float64), frames_FHWC[-1].astype(np.float64)
    way = last - first
    length = float(np.vdot(way, way))
    distance = rest = 0.0
    for frame in frames_FHWC[1:-1]:
        off = frame - first
        weight = min(1.0, max(0.0, float(np.vdot(off, way)) / length)) if length else 0.0
        distance += min(float(np.vdot(off, off)), float(np.vdot(off - way, off - way)))
        rest += float(np.vdot(off - weight * way, off - weight * way))
    still = max(1, len(frames_FHWC) - 2) * first.size * STILL_LEVELS**2
    return 0.0 if distance <= still else max(0.0, 1.0 - rest / distance)
