"""Damaged and forged video files: an error of the project's, or frames, within bounds."""

import functools
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.media.scenes import split_scenes
from hvkf.video import decode_frames, probe
from tests.fuzz.bounds import fuzzed, in_bounds
from tests.fuzz.mutations import mutated
from tests.videos import UNTAGGED, Tags, encode, encode_tagged, moving_frames, noise

ONE = 1 << 16
TURNED = (0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30)


@functools.cache
def samples() -> dict[str, bytes]:
    """Make one small video of each container, with something odd in each, as bytes."""
    made = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = moving_frames(6, 32, 32)
        times = [0, 40, 80, 1000, 1040, 9000]
        rgba = noise(4, 32, 32).repeat(2, axis=3)[..., :4].copy()
        encode(folder / "a.mkv", frames, "ffv1", times=times)
        encode(folder / "a.mov", frames, "png", "rgb24", matrix=TURNED)
        encode(folder / "a.avi", frames)
        encode_tagged(folder / "a.mp4", frames, pix_fmt="yuv422p", fields="tff")
        encode_tagged(folder / "hdr.mp4", frames, pix_fmt="yuv420p10le", tags=Tags(9, 1, 9, 16))
        encode_tagged(folder / "a.mpg", frames, "mpeg2video", "yuv420p", aspect=Fraction(64, 45))
        encode_tagged(folder / "a.ts", frames, tags=UNTAGGED, aspect=Fraction(4, 3))
        encode_tagged(folder / "a.webm", rgba, "libvpx-vp9", "yuva420p", tags=Tags(6))
        encode_tagged(folder / "rle.mov", rgba, "qtrle", "argb", tags=Tags(0, 2))
        encode_tagged(folder / "a.gif", frames, "gif", "rgb8", tags=Tags(0, 2))
        for file in folder.iterdir():
            made[file.name] = file.read_bytes()
    return made


NAMES = [
    *("a.mkv", "a.mov", "a.avi", "a.mp4", "hdr.mp4"),
    *("a.mpg", "a.ts", "a.webm", "rle.mov", "a.gif"),
]
valid = st.sampled_from(NAMES).map(lambda name: samples()[name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@fuzzed(720)
@given(mutated(valid))
def test_a_damaged_video_is_an_error_or_its_frames(folder: Path, data: bytes) -> None:
    path = folder / "a.mp4"  # no reader goes by the name
    path.write_bytes(data)
    with in_bounds():
        info = probe(path)
        decoded = list(decode_frames(path, range(info.num_frames), info.reading))
        assert [index for index, _ in decoded] == list(range(info.num_frames))
        assert all(pixels.shape == (info.height, info.width, 3) for _, pixels in decoded)
        assert info.fps > 0
        assert info.duration_s > 0
        assert split_scenes(path, reading=info.reading)[-1][1] == info.num_frames
    with in_bounds():
        list(decode_frames(path, [0, 2]))


@fuzzed(160)
@given(st.sampled_from(NAMES), st.integers(0, 255))
def test_bytes_behind_the_beginning_of_a_video_are_an_error(
    folder: Path, name: str, number: int
) -> None:
    path = folder / f"noise-{name}"
    path.write_bytes(samples()[name][: 16 + number] + noise(1).tobytes())
    with in_bounds():
        probe(path)


def test_the_files_are_good_before_they_are_damaged(folder: Path) -> None:
    kinds = set()
    for name, data in samples().items():
        path = folder / name
        path.write_bytes(data)
        kinds |= {note.code for note in probe(path).notes}
    assert kinds >= {
        "variable-fps",
        "hdr",
        "pixel-aspect",
        "untagged",
        "transparent",
        "progressive",
    }
