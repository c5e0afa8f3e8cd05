"""Does a rendered video hold together: four figures, and which of them leave the set bounds."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hvkf.settings.rendering import RenderChecks
from hvkf.stages.render_records import Checks

STILL_LEVELS = 0.5
"""Two frames whose mean difference is below half a level of 255 look the same."""
SMALLEST_STEP = 0.5
"""Levels; below it a usual step is taken as this, lest a still video has infinite jumps."""

Frames = npt.NDArray[np.uint8]


def check_frames(frames_FHWC: Frames, keyframes: Sequence[int], keyframe_psnr_db: float) -> Checks:
    """Measure a video.

    Args:
        frames_FHWC: uint8 frames.
        keyframes: Positions of its keyframes, in order.
        keyframe_psnr_db: The likeness of the worst keyframe.

    Returns:
        `end_jump`: the step into the last frame as a multiple of the median step (mean absolute
        difference of neighbours); `colour_drift`: the furthest that a frame's mean colour is from
        the line between its neighbouring keyframes', in levels of 255, any channel; `freeze`: the
        share of the video's steps that the longest still stretch has.
    """
    steps = np.array(list(_steps(frames_FHWC)))
    usual = max(float(np.median(steps)), SMALLEST_STEP) if len(steps) else SMALLEST_STEP
    return Checks(
        keyframe_psnr_db=round(keyframe_psnr_db, 4),
        end_jump=round(float(steps[-1]) / usual, 4) if len(steps) else 0.0,
        colour_drift=round(_colour_drift(frames_FHWC, keyframes), 4),
        freeze=round(_longest_run(steps < STILL_LEVELS) / max(1, len(steps)), 4),
    )


def _steps(frames: Frames) -> Iterator[float]:
    """Yield the mean absolute difference of neighbours, holding two frames as wide integers."""
    before = frames[0].astype(np.int16)
    for frame in frames[1:]:
        after = frame.astype(np.int16)
        yield float(np.abs(after - before).mean())
        before = after


def _colour_drift(frames: Frames, keyframes: Sequence[int]) -> float:
    colours_FC = np.array([frame.reshape(-1, 3).mean(axis=0) for frame in frames])
    times = np.arange(len(frames))
    drifts = [
        np.abs(colours_FC[:, channel] - np.interp(times, keyframes, colours_FC[keyframes, channel]))
        for channel in range(3)
    ]
    return float(np.max(drifts))


def _longest_run(is_still: npt.NDArray[np.bool_]) -> int:
    longest = current = 0
    for still in is_still:
        current = current + 1 if still else 0
        longest = max(longest, current)
    return longest


def marks_of(checks: Checks, bounds: RenderChecks) -> list[str]:
    """Name the figures that leave the bounds."""
    outside = {
        "keyframe": bounds.min_keyframe_psnr_db is not None
        and checks.keyframe_psnr_db < bounds.min_keyframe_psnr_db,
        "end-jump": bounds.max_end_jump is not None and checks.end_jump > bounds.max_end_jump,
        "colour-drift": bounds.max_colour_drift is not None
        and checks.colour_drift > bounds.max_colour_drift,
        "freeze": bounds.max_freeze is not None and checks.freeze > bounds.max_freeze,
    }
    return [name for name, is_outside in outside.items() if is_outside]
