"""Scenes cover a video without gaps and begin where the picture changes."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.media.scenes import split_scenes
from tests.videos import encode, in_one_folder, moving_frames, real_clips


@pytest.fixture(scope="module")
def clips() -> Path:
    return real_clips()


def scenes_video(path: Path, lengths: Sequence[int]) -> Path:
    """Write scenes of flat colours that differ strongly from each other."""
    colours = np.array([[200, 30, 30], [20, 60, 220], [240, 240, 90], [10, 90, 20]], np.uint8)
    frames = np.concatenate(
        [
            np.broadcast_to(colours[number % 4], (length, 48, 64, 3))
            for number, length in enumerate(lengths)
        ]
    )
    return encode(path, frames, "png", "rgb24")


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_scenes_are_cut_where_the_picture_changes(tmp_path: Path, detector: Any) -> None:
    path = scenes_video(tmp_path / "a.mov", [20, 30, 25])
    assert split_scenes(path, detector=detector) == [(0, 20), (20, 50), (50, 75)]


def test_a_video_without_a_cut_is_one_scene(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_frames(30))
    assert split_scenes(path) == [(0, 30)]


def test_a_threshold_above_every_change_makes_no_cut(tmp_path: Path) -> None:
    path = scenes_video(tmp_path / "a.mov", [20, 30])
    assert split_scenes(path, threshold=250) == [(0, 50)]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.integers(1, 10),
    st.sampled_from(["content", "adaptive"]),
)
@in_one_folder
def test_scenes_cover_the_video_without_gaps_and_are_long_enough(
    tmp_path: Path, lengths: list[int], least: int, detector: Any
) -> None:
    path = scenes_video(tmp_path / "a.mov", lengths)
    scenes = split_scenes(path, detector=detector, min_scene_frames=least)
    assert scenes[0][0] == 0
    assert scenes[-1][1] == sum(lengths)
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(scenes))
    assert all(end - start >= least for start, end in scenes[:-1])
    assert all(end > start for start, end in scenes)
    starts = {sum(lengths[:number]) for number in range(len(lengths))}
    assert {start for start, _ in scenes} <= starts


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_a_real_clip_is_cut_where_pyscenedetect_itself_cuts_it(clips: Path, detector: Any) -> None:
    from scenedetect import AdaptiveDetector, ContentDetector, detect

    own = {"content": ContentDetector, "adaptive": AdaptiveDetector}[detector]()
    expected = [
        (start.frame_num, end.frame_num) for start, end in detect(str(clips / "bikes.mp4"), own)
    ]
    scenes = split_scenes(clips / "bikes.mp4", detector=detector)
    assert scenes == expected
    assert len(scenes) > 3
    assert split_scenes(clips / "bikes.mp4", detector=detector) == scenes
