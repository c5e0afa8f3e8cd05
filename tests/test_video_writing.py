"""What is written is read back, alike from equal frames, and refused when it cannot be."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from hvkf.errors import BadInput, DiskFull
from hvkf.media.writing import write_mp4, write_png
from hvkf.video import decode_frames, probe
from tests.videos import moving_frames, noise


def test_a_written_video_is_read_back_nearly_as_it_was(tmp_path: Path) -> None:
    frames = moving_frames(33, 96, 64)
    write_mp4(tmp_path / "a.mp4", iter(frames), fps=Fraction(24000, 1001), crf=10)
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.num_frames) == (96, 64, 33)
    assert (info.fps, info.codec) == (Fraction(24000, 1001), "h264")
    decoded = np.stack([pixels for _, pixels in decode_frames(tmp_path / "a.mp4", range(33))])
    assert np.abs(decoded.astype(int) - frames).mean() < 2  # halved chroma


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (201, 124, 77)]


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_survive_writing_and_reading(tmp_path: Path, colour: Sequence[int]) -> None:
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, 48, 64, 3))
    write_mp4(tmp_path / "a.mp4", frames, crf=1)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)
    for _, pixels in decode_frames(tmp_path / "a.mp4", range(3)):
        assert np.abs(pixels.astype(int) - colour).max() <= 3


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    frames = noise(6, 320, 256)  # high enough that x264 would take several threads
    tags = {"prompt": "a cat,\n'naïve'", "hvkf_seed": "7"}
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, frames, metadata=tags)
    digests = {hashlib.sha256(file.read_bytes()).digest() for file in tmp_path.iterdir()}
    assert len(digests) == 1
    # x264 writes its options down; with more threads, larger videos differ from run to run.
    assert b" threads=1 " in (tmp_path / "a.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert {key: container.metadata[key] for key in tags} == tags


def test_a_written_video_can_be_played_while_it_loads(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", noise(5))
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_frames_that_h264_cannot_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no frames to write"):
        write_mp4(tmp_path / "a.mp4", [])
    with pytest.raises(BadInput, match="even sides, not 63x48"):
        write_mp4(tmp_path / "a.mp4", noise(2, 63, 48))
    with pytest.raises(ValueError, match="in a video of 64x48"):
        write_mp4(tmp_path / "a.mp4", [*noise(1), *noise(1, 96, 48)])


def test_a_full_disk_is_said() -> None:
    with pytest.raises(DiskFull, match="no room to write /dev/full"):
        write_mp4("/dev/full", noise(2))
    with pytest.raises(DiskFull, match="no room to write /dev/full"):
        write_png("/dev/full", noise(1, 640, 480)[0])


def test_a_png_is_read_back_exactly_and_written_alike(tmp_path: Path) -> None:
    from PIL import Image

    frame = noise(1)[0]
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, frame)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), frame)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_equal_frames_give_equal_bytes_whatever_lies_in_memory(tmp_path: Path) -> None:
    """x264's defaults do not: between frames of 64x64 its macroblock tree reads stray bytes."""
    frames = moving_frames(5, 64, 64)
    generator = np.random.default_rng(0)
    heap: list[object] = []
    digests = set()
    for _ in range(40):
        heap.append(generator.integers(0, 256, generator.integers(1_000, 400_000), np.uint8))
        if len(heap) > 15:
            heap.pop(int(generator.integers(15)))
        write_mp4(tmp_path / "a.mp4", frames, crf=6)
        digests.add(hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest())
    assert len(digests) == 1
