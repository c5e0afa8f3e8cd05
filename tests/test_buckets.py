"""Bucketing agrees with the reference's recorded answers, and without its doubled buckets."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.buckets import (
    Assignment,
    Bucket,
    FrameChoice,
    UnusableSize,
    assign,
    bucket_family,
    choose,
    num_windows,
    windows,
)
from hvkf.errors import BadInput

GOLDEN = json.loads((Path(__file__).parent / "golden" / "buckets.json").read_text())
REQUESTED = [tuple(int(side) for side in name.split("x")) for name in GOLDEN["reqs"]]

sides = st.integers(1, 80).map(lambda k: 16 * k)
lengths = st.integers(0, 32).map(lambda k: 4 * k + 1)
buckets = st.builds(Bucket, sides, sides, lengths)
modes = st.sampled_from(["head", "center", "uniform", "windows"])


@dataclass(frozen=True)
class Shape:
    width: int
    height: int
    num_frames: int


shapes = st.builds(Shape, st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 200))


@pytest.mark.parametrize(("width", "height"), REQUESTED)
def test_the_family_is_the_references(width: int, height: int) -> None:
    expected = GOLDEN["reqs"][f"{width}x{height}"]["bucket_list"]
    assert bucket_family(width, height) == [tuple(size) for size in expected]


@pytest.mark.parametrize(("width", "height"), REQUESTED)
def test_the_choice_is_the_references_for_every_source_size(width: int, height: int) -> None:
    expected = GOLDEN["reqs"][f"{width}x{height}"]["chosen"]
    chosen = [choose(w, h, width, height) for w, h in GOLDEN["sizes"]]
    assert chosen == [tuple(size) for size in expected]


def test_no_upscale_is_the_references_but_for_sizes_that_it_cuts_to_nothing() -> None:
    num_refused = 0
    for (w, h), expected in zip(GOLDEN["sizes"], GOLDEN["no_upscale_960x544"], strict=True):
        if 0 in expected:
            num_refused += 1
            with pytest.raises(UnusableSize, match=f"{w}x{h} pixels has a side under 16") as caught:
                choose(w, h, 960, 544, no_upscale=True)
            assert caught.value.code == "unusable-size"
        else:
            assert choose(w, h, 960, 544, no_upscale=True) == tuple(expected)
    assert num_refused == 2


def test_a_clip_without_pixels_is_refused() -> None:
    with pytest.raises(UnusableSize, match="0x540"):
        choose(0, 540, 960, 544)


@given(sides, sides)
def test_every_family_member_divides_by_16_and_comes_in_both_orientations(w: int, h: int) -> None:
    family = bucket_family(w, h)
    assert family == bucket_family(h, w)
    for width, height in family:
        assert width >= 16
        assert width % 16 == 0
        assert (height, width) in family
        assert width * height <= 2 * w * h


@given(buckets)
def test_a_bucket_is_read_back_from_its_text(bucket: Bucket) -> None:
    assert Bucket.parse(str(bucket)) == bucket


@pytest.mark.parametrize(
    "text", ["", "960x544", "960*544*33", "960x544x33x1", "ax544x33", "-16x16x1"]
)
def test_a_bucket_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not of the form WxHxF"):
        Bucket.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("960x540x33", "height 540, .* 528 and 544"),
        ("8x544x33", "width 8, .* 16 and 32"),
        ("0x544x33", "width 0, .* 16 and 32"),
        ("960x544x35", "35 frames, .* 33 and 37"),
        ("960x544x32", "32 frames, .* 29 and 33"),
        ("960x544x0", "0 frames, .* 1 and 5"),
    ],
)
def test_a_bucket_that_the_model_cannot_take_names_the_nearest_values(
    text: str, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        Bucket.parse(text)


def test_both_orientations_requested_store_each_clip_once() -> None:
    clips = [Shape(1920, 1080, 40), Shape(1080, 1920, 40)]
    requested = [Bucket.parse("1280x720x33"), Bucket.parse("720x1280x33")]
    assert assign(clips, requested).members == {
        Bucket(720, 1280, 33): (1,),
        Bucket(1280, 720, 33): (0,),
    }


def test_a_clip_enters_every_bucket_whose_length_fits_behind_the_head_frame() -> None:
    requested = [Bucket(64, 64, f) for f in (17, 33, 65)]
    result = assign([Shape(64, 64, 40), Shape(64, 64, 16)], requested, head_frame=7)
    assert result.members == {Bucket(64, 64, 17): (0,), Bucket(64, 64, 33): (0,)}
    assert result.too_short == (1,)


def test_small_buckets_are_dropped_and_reported() -> None:
    clips = [Shape(64, 64, 33)] * 3 + [Shape(96, 64, 33)]
    result = assign(clips, [Bucket(64, 64, 33)], min_bucket_count=2)
    assert result.members == {Bucket(64, 64, 33): (0, 1, 2)}
    assert result.dropped == {Bucket(80, 48, 33): 1}


def test_the_least_bucket_count_counts_the_windows_of_a_long_clip() -> None:
    clips, requested = [Shape(64, 64, 99)], [Bucket(64, 64, 33)]
    assert assign(clips, requested, min_bucket_count=3, mode="windows").dropped == {}
    assert assign(clips, requested, min_bucket_count=3).dropped == {Bucket(64, 64, 33): 1}


def test_a_clip_of_an_unusable_size_is_refused_and_the_others_go_on() -> None:
    result = assign([Shape(1000, 1, 33), Shape(64, 64, 33)], [Bucket(64, 64, 33)], no_upscale=True)
    assert result.members == {Bucket(64, 64, 33): (1,)}
    assert [(refusal.clip, refusal.code) for refusal in result.refused] == [(0, "unusable-size")]


@given(
    st.lists(shapes, max_size=8),
    st.lists(buckets, max_size=6),
    st.integers(0, 50),
    st.integers(1, 3),
    st.booleans(),
)
def test_every_clip_is_accounted_for(
    clips: list[Shape], requested: list[Bucket], head: int, least: int, no_upscale: bool
) -> None:
    result: Assignment = assign(
        clips, requested, head_frame=head, min_bucket_count=least, no_upscale=no_upscale
    )
    for bucket, positions in result.members.items():
        assert len(positions) >= least
        assert list(positions) == sorted(set(positions))
        assert all(clips[p].num_frames >= head + bucket.num_frames for p in positions)
    assert not set(result.members) & set(result.dropped)
    placed = {p for positions in result.members.values() for p in positions}
    left_out = set(result.too_short) | {refusal.clip for refusal in result.refused}
    assert not placed & left_out
    if not result.dropped:
        assert placed | left_out == set(range(len(clips)))
    again = assign(
        clips, reversed(requested), head_frame=head, min_bucket_count=least, no_upscale=no_upscale
    )
    assert again == result


@given(st.integers(0, 300), lengths, modes, st.integers(0, 60))
def test_windows_hold_ascending_frames_of_the_clip_behind_the_head_frame(
    num_clip_frames: int, num_frames: int, mode: FrameChoice, head: int
) -> None:
    made = windows(num_clip_frames, num_frames, mode, head)
    assert len(made) == num_windows(num_clip_frames, num_frames, mode, head)
    assert bool(made) == (num_clip_frames - head >= num_frames)
    flat = [index for window in made for index in window]
    assert flat == sorted(set(flat))
    assert all(head <= index < num_clip_frames for index in flat)
    assert all(len(window) == num_frames for window in made)


def test_each_mode_takes_its_frames() -> None:
    assert windows(20, 5, "head", 3) == [(3, 4, 5, 6, 7)]
    assert windows(20, 5, "center", 0) == [(7, 8, 9, 10, 11)]
    assert windows(20, 5, "uniform", 3) == [(3, 7, 11, 15, 19)]
    assert windows(7, 5, "uniform", 0) == [(0, 2, 3, 5, 6)]  # 1.5 and 4.5 go up
    assert windows(14, 5, "windows", 3) == [(3, 4, 5, 6, 7), (8, 9, 10, 11, 12)]


@given(st.integers(2, 300), lengths.filter(lambda f: f > 1))
def test_uniform_spans_the_clip_in_even_steps(num_clip_frames: int, num_frames: int) -> None:
    for window in windows(num_clip_frames, num_frames, "uniform"):
        assert (window[0], window[-1]) == (0, num_clip_frames - 1)
        steps = {b - a for a, b in itertools.pairwise(window)}
        assert max(steps) - min(steps) <= 1


def test_bucketing_loads_nothing_heavy() -> None:
    program = (
        "import sys, hvkf.buckets, hvkf.tables;"
        "print([m for m in ('torch', 'streaming', 'prefect', 'cv2', 'av', 'pyarrow', 'numpy')"
        " if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
