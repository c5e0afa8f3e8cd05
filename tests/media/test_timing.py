"""Timestamps decide when frames are shown, also those that are broken."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.media.timing import resample_indices, resample_times, timing

HOUR_S = 3600.0


def codes(times: list[float | None], declared: Fraction | None = None) -> list[str]:
    return [note.code for note in timing(times, 0.0, declared).notes]


def test_a_picture_an_hour_is_a_slow_constant_rate() -> None:
    found = timing([i * HOUR_S for i in range(10)], 0.0, None)
    assert (found.fps, found.is_variable) == (Fraction(1, 3600), False)
    assert found.duration_s == 10 * HOUR_S


@pytest.mark.parametrize("days", [0.2, 26 / 24, 40, 4000])
def test_a_jump_is_closed_and_told(days: float) -> None:
    times: list[float | None] = [i / 25 + (days * 86400 if i > 6 else 0) for i in range(50)]
    found = timing(times, 0.04, Fraction(25))
    assert [note.code for note in found.notes] == ["timestamps"]
    assert "jump" in found.notes[0].message
    assert found.fps == 25
    assert not found.is_variable
    assert found.duration_s == pytest.approx(2)


def test_a_pause_of_a_screen_recording_is_no_jump() -> None:
    times: list[float | None] = [0, 0.04, 0.08, 40, 40.04]
    found = timing(times, 0.0, None)
    assert found.is_variable
    assert found.times_s == (0, 0.04, 0.08, 40, 40.04)
    assert codes(times) == ["variable-fps"]


def test_times_before_zero_count_from_the_first_frame() -> None:
    found = timing([-1.0, -0.96, -0.92, -0.5], 0.0, None)
    assert found.times_s == pytest.approx((0, 0.04, 0.08, 0.5))
    assert found.duration_s == pytest.approx(0.54)


def test_times_that_go_back_follow_at_the_usual_step() -> None:
    times: list[float | None] = [10, 10.1, 10.2, 3, 3.1, 3.2]
    found = timing(times, 0.0, None)
    assert found.fps == 10
    assert not found.is_variable
    assert codes(times) == ["timestamps"]


def test_missing_times_are_filled_in_at_the_declared_rate() -> None:
    times: list[float | None] = [0, None, None, 0.3, 0.4]
    assert timing(times, 0.0, Fraction(10)).fps == 10
    assert codes(times, Fraction(10)) == ["timestamps"]


@pytest.mark.parametrize("times", [[None] * 5, [1.0] * 5, [5.0, 4.0, 3.0]])
def test_without_times_that_advance_the_declared_rate_counts(times: list[float | None]) -> None:
    assert timing(times, 0.0, Fraction(12)).fps == 12
    assert timing(times, 0.0, None).fps == 25
    assert codes(times) == ["timestamps"]


def test_frames_with_one_time_stay() -> None:
    found = timing([0, 0.1, 0.1, 0.1, 1.0, 1.1], 0.0, None)
    assert found.times_s == (0, 0.1, 0.1, 0.1, 1.0, 1.1)


any_time = st.one_of(st.none(), st.floats(-1e6, 1e12, allow_nan=False), st.sampled_from([0.0, 1.0]))


@given(st.lists(any_time, min_size=1, max_size=40), st.floats(-1, 1e9))
def test_whatever_the_times_are_the_rate_is_usable(
    times: list[float | None], last_frame_s: float
) -> None:
    found = timing(times, last_frame_s, None)
    assert found.fps > 0
    assert math.isfinite(float(found.fps))
    assert math.isfinite(found.duration_s)
    assert found.duration_s > 0
    assert all(a <= b for a, b in pairwise(found.times_s))
    assert not found.is_variable or len(found.times_s) == len(times)


def test_a_slow_and_a_fast_half_last_as_long_as_they_did() -> None:
    # A second at 60 frames a second, then two at 15.
    times = [i / 60 for i in range(60)] + [1 + i / 15 for i in range(30)]
    made = resample_times(times, 3.0, 30)
    assert len(made) == 90
    for number, frame in enumerate(made):
        assert abs(times[frame] - number / 30) <= 1 / 15
    assert made[:30] == list(range(0, 60, 2))
    assert made[30] == 60


def test_no_frame_is_shown_long_before_its_time() -> None:
    made = resample_times([0.0, 0.1, 10.0], 10.5, 10)
    assert made == [0] + [1] * 99 + [2] * 5


def test_of_frames_with_one_time_the_last_is_shown() -> None:
    assert resample_times([0.0, 0.5, 0.5, 0.5], 1.0, 2) == [0, 3]


@given(st.integers(2, 60), st.sampled_from([12, 24, 25, 30, 50]), st.sampled_from([10, 24, 25]))
def test_at_a_constant_rate_times_and_rates_choose_alike(
    num_frames: int, fps: int, target_fps: int
) -> None:
    by_times = resample_times([i / fps for i in range(num_frames)], num_frames / fps, target_fps)
    by_rate = resample_indices(num_frames, fps, target_fps)
    assert len(by_times) == len(by_rate)
    if fps >= target_fps:
        # A time half way between two frames may fall to either.
        assert all(abs(a - b) <= 1 for a, b in zip(by_times, by_rate, strict=True))
        assert sum(a != b for a, b in zip(by_times, by_rate, strict=True)) <= num_frames // 2
