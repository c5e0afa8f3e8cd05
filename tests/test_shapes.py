import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hvkf.errors import BadInput
from hvkf.shapes import SHAPE_COLOURS, render_clip, write_dataset
from hvkf.video import decode_frames

NUM_CLIPS = 48


def psnr(frames: NDArray[Any], other: NDArray[Any]) -> float:
    error = np.mean((frames.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_equal_seed_and_index_give_equal_clips() -> None:
    first, second = render_clip(3, 7, 17), render_clip(3, 7, 17)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


def test_another_index_or_seed_gives_another_clip() -> None:
    frames, _ = render_clip(3, 7, 5)
    assert not np.array_equal(frames, render_clip(3, 8, 5)[0])
    assert not np.array_equal(frames, render_clip(4, 7, 5)[0])


@pytest.mark.parametrize(("num_frames", "size"), [(1, 64), (17, 64), (5, 32)])
def test_frames_are_rgb_bytes_of_the_asked_size(num_frames: int, size: int) -> None:
    frames, _ = render_clip(0, 0, num_frames, size)
    assert frames.shape == (num_frames, size, size, 3)
    assert frames.dtype == np.uint8


def test_longer_clips_go_the_same_way_more_slowly() -> None:
    for index in range(8):
        np.testing.assert_array_equal(
            render_clip(0, index, 33)[0][::2], render_clip(0, index, 17)[0]
        )


def test_captions_name_shapes_and_changes_and_leave_the_background_to_the_keyframes() -> None:
    captions = [render_clip(0, index, 1)[1] for index in range(NUM_CLIPS)]
    for caption in captions:
        assert "background" not in caption
        assert not caption.endswith(",")
        assert any(f"{name} " in caption for name in SHAPE_COLOURS)
        assert any(kind in caption for kind in ("disc", "square", "triangle"))
        assert not caption.startswith(("a orange", "an red"))
    verbs = ("moves from", "grows", "shrinks", "turns", "changes to")
    assert all(any(verb in caption for caption in captions) for verb in verbs)


def test_a_white_shape_moves_as_its_caption_says() -> None:
    found = 0
    for index in range(300):
        frames, caption = render_clip(1, index, 2)
        way = re.match(r"a white \w+ moves from the (left|right) to the (.+?)( on|,)", caption)
        if way is None or " and " in caption or "changes" in caption:
            continue
        found += 1
        start, end = (np.nonzero((frame.min(axis=-1) > 205).any(axis=0))[0] for frame in frames)
        assert (start.mean() < 32) == (way[1] == "left")
        assert (end.mean() - start.mean() > 0) == (way[1] == "left")
    assert found >= 1


def test_neither_a_freeze_nor_a_cross_fade_shows_the_motion() -> None:
    weights = np.linspace(0, 1, 17)[:, None, None, None]
    freezes, fades = [], []
    for index in range(NUM_CLIPS):
        frames, _ = render_clip(0, index, 17)
        freezes.append(psnr(frames, frames[:1]))
        fades.append(psnr(frames, (1 - weights) * frames[:1] + weights * frames[-1:]))
    assert np.mean(freezes) < 21
    assert np.mean(fades) < 27


def test_edges_are_anti_aliased() -> None:
    frames, _ = render_clip(0, 2, 1)
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 100


def test_a_data_set_is_written_in_the_reference_layout(tmp_path: Path) -> None:
    metadata = write_dataset(tmp_path, num_clips=3, num_frames=9, seed=0, first_index=5)
    with metadata.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for index, row in zip(range(5, 8), rows, strict=True):
        frames, caption = render_clip(0, index, 9)
        assert row["caption"] == caption
        written = np.stack(
            [frame for _, frame in decode_frames(tmp_path / row["video_file"], range(9))]
        )
        assert written.shape == frames.shape
        assert psnr(written, frames) > 30


@pytest.mark.parametrize(("num_frames", "size"), [(0, 64), (5, 0)])
def test_an_empty_clip_is_refused(num_frames: int, size: int) -> None:
    with pytest.raises(BadInput, match="ask for 1 or more"):
        render_clip(0, 0, num_frames, size)
