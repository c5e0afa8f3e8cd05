"""Does a rendered video hold together: four figures, and which of them leave the set bounds."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hvkf.model.video_motion import colour_drift, end_jump, frame_steps, longest_still
from hvkf.settings.rendering import RenderChecks
from hvkf.stages.render_records import Checks


def check_frames(
    frames_FHWC: npt.NDArray[np.uint8], keyframes: Sequence[int], keyframe_psnr_db: float
) -> Checks:
    """Measure a video; what the figures mean is told by `hvkf.stages.evaluate_records.Motion`.

    Args:
        frames_FHWC: uint8 frames.
        keyframes: Positions of its keyframes, in order.
        keyframe_psnr_db: The likeness of the worst keyframe.
    """
    steps = frame_steps(frames_FHWC)
    return Checks(
        keyframe_psnr_db=round(keyframe_psnr_db, 4),
        end_jump=round(end_jump(steps), 4),
        colour_drift=round(colour_drift(frames_FHWC, keyframes), 4),
        freeze=round(longest_still(steps), 4),
    )


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
