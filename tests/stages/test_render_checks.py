"""The checks of a rendered video: what each figure sees, and what it does not."""

import numpy as np

from hvkf.model.video_motion import Frames
from hvkf.settings.rendering import RenderChecks
from hvkf.stages.render_checks import check_frames, marks_of


def moving(num_frames: int = 17) -> Frames:
    """Brightness that rises by four levels a frame."""
    levels = 40 + 4 * np.arange(num_frames)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, 16, 16, 3)).astype(np.uint8)


def test_an_even_video_has_no_jump_no_drift_and_no_freeze() -> None:
    checks = check_frames(moving(), [0, 16], 30.0)
    assert (checks.end_jump, checks.colour_drift, checks.freeze) == (1.0, 0.0, 0.0)
    assert checks.keyframe_psnr_db == 30.0


def test_a_last_frame_that_jumps_is_seen() -> None:
    frames = moving().copy()
    frames[-1] = 200
    assert check_frames(frames, [0, 16], 30.0).end_jump == (200 - 100) / 4


def test_a_colour_that_leaves_the_keyframes_is_seen() -> None:
    frames = moving().copy()
    frames[8, ..., 2] += 30
    assert check_frames(frames, [0, 16], 30.0).colour_drift == 30.0


def test_the_longest_still_stretch_is_seen() -> None:
    frames = moving().copy()
    frames[4:12] = frames[4]
    assert check_frames(frames, [0, 16], 30.0).freeze == round(7 / 16, 4)


def test_marks_name_the_figures_outside_of_the_bounds_and_no_bound_marks_nothing() -> None:
    checks = check_frames(moving(), [0, 16], 20.0)
    assert marks_of(checks, RenderChecks()) == []
    bounds = RenderChecks(min_keyframe_psnr_db=25, max_end_jump=0.5, max_freeze=0.1)
    assert marks_of(checks, bounds) == ["keyframe", "end-jump"]
