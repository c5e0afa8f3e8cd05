"""Frames are resized as the reference's inference does, whatever their size."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from hvkf import resize
from hvkf.resize import resize_to_cover

GOLDEN_DIR = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN_DIR / "resize.json").read_text())
RECORDED = [name for name in CASES if "src_hw" in CASES[name]]
SHAPES_ONLY = [name for name in CASES if "src_hw" not in CASES[name]]


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[np.uint8]]:
    return load_file(GOLDEN_DIR / "resize.safetensors")


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", RECORDED)
def test_pixels_are_those_of_the_references_inference(
    name: str, arrays: dict[str, NDArray[np.uint8]]
) -> None:
    width, height = CASES[name]["bucket_wh"]
    resized = resize_to_cover(arrays[f"{name}.in"], width, height)
    np.testing.assert_array_equal(resized, arrays[f"{name}.inference"])


@pytest.mark.parametrize("name", SHAPES_ONLY)
def test_resize_covers_the_bucket_when_one_side_already_fits(name: str) -> None:
    width, height = (int(side) for side in name.removeprefix("bug_").split("->")[0].split("x"))
    bucket_width, bucket_height = CASES[name]["selected"]
    resized = resize_to_cover(noise(height, width), bucket_width, bucket_height)
    assert list(resized.shape) == CASES[name]["inf_shape"] == [bucket_height, bucket_width, 3]


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=300)
def test_the_result_always_has_exactly_the_wanted_size(
    frame_height: int, frame_width: int, height: int, width: int
) -> None:
    resized = resize_to_cover(noise(frame_height, frame_width), width, height)
    assert resized.shape == (height, width, 3)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 90), st.integers(1, 90))
def test_a_plain_colour_stays_what_it_is(
    frame_height: int, frame_width: int, height: int, width: int
) -> None:
    colour = np.array([250, 7, 128], dtype=np.uint8)
    frame = np.broadcast_to(colour, (frame_height, frame_width, 3))
    resized = resize_to_cover(frame, width, height)
    np.testing.assert_array_equal(resized, np.broadcast_to(colour, (height, width, 3)))


def test_a_frame_that_fits_is_returned_unchanged() -> None:
    frame = noise(48, 64)
    np.testing.assert_array_equal(resize_to_cover(frame, 64, 48), frame)


def test_a_line_of_pixels_is_enlarged_without_filling_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Covering 1920x480 with 1000x1 would take a frame of 480000x480, which is 691 MB.
    monkeypatch.delattr(resize, "_enlarge")
    resized = resize_to_cover(noise(1, 1000), 1920, 480)
    assert resized.shape == (480, 1920, 3)


@pytest.mark.parametrize("size_hw", [(30, 40), (48, 200), (200, 31), (1, 90)])
def test_enlarging_only_the_centre_agrees_with_cutting_it_out(
    size_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = noise(*size_hw)
    whole = resize_to_cover(frame, 256, 208)
    monkeypatch.setattr(resize, "MAX_COVER_PIXELS", 0)
    part = resize_to_cover(frame, 256, 208)
    assert np.abs(whole.astype(int) - part.astype(int)).max() <= 1


def test_a_view_with_strides_gives_what_its_copy_gives() -> None:
    view = noise(80, 120)[:, ::-1]
    for width, height in ((64, 64), (160, 112)):
        np.testing.assert_array_equal(
            resize_to_cover(view, width, height), resize_to_cover(view.copy(), width, height)
        )


def test_shrinking_takes_one_thread() -> None:
    cv2.setNumThreads(2)
    resize._opencv.cache_clear()
    resize_to_cover(np.zeros((64, 64, 3), np.uint8), 32, 32)
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_frame_is_refused(frame: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"not an RGB frame|cannot scale"):
        resize_to_cover(frame, 16, 16)
