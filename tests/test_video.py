"""Videos of all kinds are read frame by frame, and resampled."""

import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.media import frames as frames_module
from hvkf.media.errors import MediaFault
from hvkf.media.timing import resample_indices
from hvkf.media.writing import write_mp4
from hvkf.records import Reading
from hvkf.video import VideoInfo, decode_frames, probe
from tests.videos import Frames, encode, in_one_folder, moving_frames, noise, real_clips


@pytest.fixture(scope="module")
def clips() -> Path:
    return real_clips()


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Frames]:
    frames = noise(20)
    folder = tmp_path_factory.mktemp("lossless")
    return encode(folder / "noise.mov", frames, "png", "rgb24"), frames


@pytest.mark.parametrize(
    ("name", "size", "fps", "num_frames", "reading", "kinds"),
    [
        ("bigbuckbunny.mp4", (1280, 720), Fraction(25), 132, {"matrix": "bt709"}, ["untagged"]),
        ("bikes.mp4", (640, 272), Fraction(25), 250, {}, ["untagged"]),
        (
            # Stored as 176x144, in pixels of 128:117.
            "carphone_pristine.mp4",
            (193, 144),
            Fraction(30000, 1001),
            120,
            {"aspect": "128:117"},
            ["pixel-aspect", "untagged"],
        ),
    ],
)
def test_real_clips_are_probed(
    clips: Path,
    name: str,
    size: tuple[int, int],
    fps: Fraction,
    num_frames: int,
    reading: dict[str, str],
    kinds: list[str],
) -> None:
    info = probe(clips / name)
    assert [note.code for note in info.notes] == kinds
    assert info == VideoInfo(
        width=size[0],
        height=size[1],
        fps=fps,
        num_frames=num_frames,
        duration_s=float(num_frames / fps),
        codec="h264",
        is_rotated=False,
        is_variable_fps=False,
        reading=Reading.model_validate(reading),
        notes=info.notes,
    )


@pytest.mark.parametrize(
    ("file_name", "codec", "pix_fmt"),
    [
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.mkv", "ffv1", "yuv420p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.ts", "mpeg2video", "yuv420p"),
        ("a:b %d é.mp4", "mpeg4", "yuv420p"),
    ],
)
def test_odd_sizes_are_read_whole_from_every_container(
    tmp_path: Path, file_name: str, codec: str, pix_fmt: str
) -> None:
    frames = moving_frames(12, 63, 47)
    path = encode(tmp_path / file_name, frames, codec, pix_fmt)
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.fps) == (63, 47, 12, Fraction(24))
    decoded = np.stack([pixels for _, pixels in decode_frames(path, range(12))])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 8


def test_sound_beside_the_pictures_does_not_matter(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_frames(12), with_sound=True)
    assert probe(path).num_frames == 12
    assert [index for index, _ in decode_frames(path, [3, 11])] == [3, 11]


def test_tags_that_are_not_utf8_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, moving_frames(3), metadata={"comment": "cafe"})
    data = path.read_bytes()
    assert data.count(b"cafe") == 1
    path.write_bytes(data.replace(b"cafe", b"caf\xe9"))
    assert probe(path).num_frames == 3


def test_frames_are_counted_although_the_container_lies(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", moving_frames(12))
    data = bytearray(path.read_bytes())
    for header, offset in ((b"avih", 24), (b"strh", 40)):
        place = data.index(header) + offset
        assert int.from_bytes(data[place : place + 4], "little") == 12
        data[place : place + 4] = (999).to_bytes(4, "little")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 999
    assert probe(path).num_frames == 12


def test_a_variable_frame_rate_is_seen_and_averaged(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 520, 560, 600, 1000]
    path = encode(tmp_path / "a.mkv", moving_frames(8), rate=25, times=times)
    info = probe(path)
    assert info.is_variable_fps
    assert info.num_frames == 8
    assert info.fps == 7
    assert [index for index, _ in decode_frames(path, range(8))] == list(range(8))


def test_times_rounded_to_milliseconds_are_no_variable_frame_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", moving_frames(60), rate=Fraction(30000, 1001))
    info = probe(path)
    assert not info.is_variable_fps
    assert info.fps == Fraction(30000, 1001)


MATRICES = {
    "as stored": (1, 0, 0, 1),
    "quarter turn": (0, 1, -1, 0),
    "half turn": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_laid_as_the_display_matrix_says(tmp_path: Path, name: str) -> None:
    a, b, c, d = MATRICES[name]
    one = 1 << 16
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    frames = noise(2, 10, 6)
    path = encode(tmp_path / "a.mov", frames, "png", "rgb24", matrix=matrix)

    # The pixel at (x, y) goes to (ax + cy, bx + dy), moved back to where coordinates are positive.
    y, x = (grid.ravel() for grid in np.mgrid[:6, :10])
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    expected = np.zeros((2, to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    expected[:, to_y, to_x] = frames[:, y, x]

    decoded = np.stack([pixels for _, pixels in decode_frames(path, range(2))])
    np.testing.assert_array_equal(decoded, expected)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]
    assert info.is_rotated == (name != "as stored")


@given(st.lists(st.integers(0, 19), max_size=12))
@in_one_folder
def test_wanted_frames_come_ascending_and_exactly(
    lossless: tuple[Path, Frames], wanted: list[int]
) -> None:
    path, frames = lossless
    decoded = list(decode_frames(path, wanted))
    assert [index for index, _ in decoded] == sorted(set(wanted))
    for index, pixels in decoded:
        np.testing.assert_array_equal(pixels, frames[index])
        assert pixels.flags.c_contiguous


def test_only_wanted_frames_are_converted(
    lossless: tuple[Path, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[object] = []
    original = frames_module.pixels

    def counted(frame: av.VideoFrame) -> Frames:
        converted.append(frame)
        return original(frame)

    monkeypatch.setattr(frames_module, "pixels", counted)
    assert len(list(decode_frames(lossless[0], [2, 17]))) == 2
    assert len(converted) == 2


def test_decoding_holds_one_frame_at_a_time(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_frames(60, 320, 240))
    tracemalloc.start()
    try:
        for _, pixels in decode_frames(path, range(60)):
            assert pixels.shape == (240, 320, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 320 * 240 * 3


def test_a_frame_behind_the_end_is_a_fault_that_says_how_many_there_are(
    lossless: tuple[Path, Frames],
) -> None:
    decoded: list[int] = []
    with pytest.raises(MediaFault, match=r"noise\.mov has 20 frames, so .* no frame 20") as caught:
        decoded.extend(index for index, _ in decode_frames(lossless[0], [5, 20, 21]))
    assert caught.value.code == "too-short"


def test_negative_indices_are_refused(lossless: tuple[Path, Frames]) -> None:
    with pytest.raises(ValueError, match="count from 0, not -1"):
        list(decode_frames(lossless[0], [3, -1]))


def test_resampling_takes_the_nearest_frames() -> None:
    assert resample_indices(4, 25, None) == [0, 1, 2, 3]
    assert resample_indices(10, 30, 15) == [0, 2, 4, 6, 8]
    assert resample_indices(3, 12, 24) == [0, 1, 1, 2, 2, 2]
    assert resample_indices(10, 25, 24) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert resample_indices(0, 25, 24) == []


rates = st.sampled_from([Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, 60, 7.5])


@given(st.integers(1, 400), rates, rates)
def test_resampled_frames_lie_within_half_a_source_frame(
    num_frames: int, fps: float | Fraction, target_fps: float | Fraction
) -> None:
    indices = resample_indices(num_frames, fps, target_fps)
    assert abs(len(indices) - num_frames * float(target_fps) / float(fps)) <= 0.5 + 1e-9
    assert indices == sorted(indices)
    for made, index in enumerate(indices):
        assert 0 <= index < num_frames
        is_last = index == num_frames - 1
        distance = made * float(fps) / float(target_fps) - index
        assert distance >= -0.5 - 1e-9
        assert is_last or distance <= 0.5 + 1e-9


@given(st.integers(1, 3000), rates)
def test_resampling_to_the_same_rate_changes_nothing_though_it_went_through_a_float(
    num_frames: int, fps: float | Fraction
) -> None:
    assert resample_indices(num_frames, float(fps), fps) == list(range(num_frames))


def test_pixels_are_converted_without_a_bias(clips: Path) -> None:
    """Compare with BT.601's own formula in floats, where chroma is flat enough not to matter."""
    with av.open(str(clips / "carphone_pristine.mp4")) as container:
        planes = next(container.decode(video=0)).to_ndarray().astype(float)
    luma = (planes[:144] - 16) * 255 / 219
    cb, cr = (
        np.repeat(np.repeat(plane.reshape(72, 88), 2, axis=0), 2, axis=1) - 128
        for plane in (planes[144:180], planes[180:])
    )
    red = luma + 1.402 * 255 / 224 * cr
    blue = luma + 1.772 * 255 / 224 * cb
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    expected = np.clip(np.stack([red, green, blue], axis=-1), 0, 255)
    ((_, pixels),) = decode_frames(clips / "carphone_pristine.mp4", [0], Reading())
    assert np.abs((pixels - expected).mean(axis=(0, 1))).max() < 0.1


def test_reading_videos_loads_neither_torch_nor_opencv() -> None:
    program = (
        "import sys, hvkf.video, hvkf.resize;"
        "print([m for m in ('torch', 'streaming', 'prefect', 'cv2', 'scenedetect')"
        " if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
