"""What the figures of motion see: each kind of bad video, and that a good one has none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvkf.model.image_quality import ms_ssim
from hvkf.model.optical_flow import flow_warp_error, shrunk
from hvkf.model.video_motion import (
    Frames,
    colour_drift,
    cross_fade_share,
    end_jump,
    frame_steps,
    longest_still,
)
from hvkf.shapes import render_clip
from hvkf.stages.evaluate_pairs import cross_fade, measure_motion

NUM_FRAMES = 17


@pytest.fixture(params=range(4))
def clip(request: pytest.FixtureRequest) -> Frames:
    return render_clip(0, 1_001_000 + request.param, NUM_FRAMES)[0]


def faded(clip: Frames) -> Frames:
    return cross_fade(torch.from_numpy(clip)).numpy()


def test_a_cross_fade_is_told_from_shapes_that_move(clip: Frames) -> None:
    assert cross_fade_share(faded(clip)) > 0.99
    assert cross_fade_share(clip) < 0.6


def test_a_still_video_is_frozen_and_is_no_cross_fade(clip: Frames) -> None:
    still = np.repeat(clip[:1], NUM_FRAMES, axis=0)
    motion = measure_motion(torch.from_numpy(still))
    assert motion.freeze == 1.0
    assert (motion.flicker, motion.flow_warp, motion.cross_fade, motion.end_jump) == (0, 0, 0, 0)
    assert longest_still(frame_steps(clip)) < 0.5


def test_frames_in_disorder_flicker_and_do_not_follow_their_flow(clip: Frames) -> None:
    order = np.random.default_rng(0).permutation(NUM_FRAMES)
    assert frame_steps(clip[order]).mean() > 1.5 * frame_steps(clip).mean()
    assert flow_warp_error(clip[order]) > flow_warp_error(clip)


def test_a_keyframe_that_is_pasted_onto_the_end_is_a_jump(clip: Frames) -> None:
    pasted = np.concatenate([np.repeat(clip[:1], NUM_FRAMES - 1, axis=0), clip[-1:]])
    assert end_jump(frame_steps(pasted)) > 5
    assert end_jump(frame_steps(clip)) < 2


def test_colours_that_leave_the_line_between_the_keyframes_drift(clip: Frames) -> None:
    tinted = clip.astype(np.int16)
    tinted[NUM_FRAMES // 2, ..., 0] = np.minimum(255, tinted[NUM_FRAMES // 2, ..., 0] + 40)
    ends = [0, NUM_FRAMES - 1]
    assert colour_drift(tinted.astype(np.uint8), ends) > colour_drift(clip, ends) + 15


def test_flow_is_found_on_at_most_128_pixels_a_side_and_small_frames_stay() -> None:
    large = np.zeros((256, 192, 3), dtype=np.uint8)
    assert shrunk(large).shape == (128, 96, 3)
    assert shrunk(large[:64, :32]).shape == (64, 32, 3)


@pytest.mark.parametrize("side", [16, 44, 64, 200])
def test_ms_ssim_takes_any_size_and_is_1_for_equal_frames(side: int) -> None:
    frames, _ = render_clip(0, 3, 5, size=side)
    truth = torch.from_numpy(frames)
    assert ms_ssim(truth, truth) == pytest.approx(1.0)
    noise = np.random.default_rng(0).normal(0, 25, frames.shape)
    noisy = torch.from_numpy(np.clip(frames + noise, 0, 255).astype(np.uint8))
    assert 0 < ms_ssim(noisy, truth) < 0.99


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_shares_lie_between_0_and_1_for_any_video(seed: int, num_frames: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 12, 12, 3), dtype=np.uint8)
    steps = frame_steps(frames)
    assert 0 <= cross_fade_share(frames) <= 1
    assert 0 <= longest_still(steps) <= 1
    assert end_jump(steps) >= 0
