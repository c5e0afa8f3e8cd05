"""What files say of their pictures' shape, track and colours, and how they are read then."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from hvkf.media.errors import MediaFault
from hvkf.media.opening import opened
from hvkf.media.reading import Choices, Header, Said, choose
from hvkf.media.scenes import split_scenes
from hvkf.media.tracks import choose_track
from hvkf.records import Reading
from hvkf.video import VideoInfo, decode_frames, probe
from tests.videos import BT709, UNTAGGED, Frames, Tags, encode, encode_tagged, moving_frames, noise

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (192, 128, 64))


def patches(width: int, height: int, num_frames: int = 3) -> Frames:
    """Four patches of one colour each, in a row."""
    frame = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate(COLOURS):
        frame[:, number * width // 4 : (number + 1) * width // 4] = colour
    return np.stack([frame] * num_frames)


def colours_of(path: Path, info: VideoInfo) -> Sequence[Any]:
    ((_, pixels),) = decode_frames(path, [1], info.reading)
    height, width = pixels.shape[:2]
    return [pixels[height // 2, (2 * n + 1) * width // 8].tolist() for n in range(4)]


def codes(info: VideoInfo) -> list[str]:
    return [note.code for note in info.notes]


@pytest.mark.parametrize(
    ("name", "codec", "size", "aspect", "shown"),
    [
        ("a.mpg", "mpeg2video", (720, 576), Fraction(64, 45), (1024, 576)),
        ("a.mpg", "mpeg2video", (720, 480), Fraction(8, 9), (640, 480)),
        ("a.mp4", "libx264", (704, 480), Fraction(10, 11), (640, 480)),
        ("a.mkv", "libx264", (96, 64), Fraction(2), (192, 64)),
        ("a.mov", "prores_ks", (96, 64), Fraction(4, 3), (128, 64)),
        ("a.avi", "mpeg4", (96, 64), Fraction(1, 2), (48, 64)),
    ],
)
def test_pictures_are_as_wide_as_their_pixels_say(
    tmp_path: Path,
    name: str,
    codec: str,
    size: tuple[int, int],
    aspect: Fraction,
    shown: tuple[int, int],
) -> None:
    pix_fmt = {"prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
    frames = moving_frames(3, *size)
    tags = UNTAGGED if name == "a.avi" else BT709  # it has no place for them
    path = encode_tagged(tmp_path / name, frames, codec, pix_fmt, tags=tags, aspect=aspect)
    info = probe(path)
    assert (info.width, info.height) == shown
    assert "pixel-aspect" in codes(info)
    for reading in (info.reading, None):
        ((_, pixels),) = decode_frames(path, [2], reading)
        assert pixels.shape == (shown[1], shown[0], 3)
        nearest = frames[2][:, np.arange(shown[0]) * size[0] // shown[0]]
        assert np.abs(pixels.astype(int) - nearest).mean() < 8


def test_pictures_are_stretched_first_and_turned_then(tmp_path: Path) -> None:
    one = 1 << 16
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("png", rate=24)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "rgb24"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_matrix((0, one, 0, -one, 0, 0, 0, 0, 1 << 30))
        for pixels in noise(2, 40, 30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    info = probe(path)
    assert (info.width, info.height) == (30, 80)
    ((_, pixels),) = decode_frames(path, [0], info.reading)
    assert pixels.shape == (80, 30, 3)


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(1000, 1001)])
def test_square_pixels_change_nothing(tmp_path: Path, aspect: Fraction) -> None:
    path = encode_tagged(tmp_path / "a.mp4", noise(2), aspect=aspect)
    info = probe(path)
    assert (info.width, info.height) == (64, 48)
    assert info.reading == Reading()


@pytest.mark.parametrize("aspect", [Fraction(1, 20), Fraction(20)])
def test_pixels_of_no_screen_are_refused(tmp_path: Path, aspect: Fraction) -> None:
    path = encode_tagged(tmp_path / "a.mkv", noise(2), aspect=aspect)
    with pytest.raises(MediaFault, match=r"a\.mkv says that its pixels are") as caught:
        probe(path)
    assert caught.value.code == "odd-aspect"


@pytest.mark.parametrize(
    ("size", "matrix", "assumed"),
    [
        ((1280, 64), 1, "bt709"),
        ((64, 720), 1, "bt709"),
        ((64, 1280), 1, "bt709"),
        ((1024, 576), 6, ""),
        ((720, 480), 6, ""),
    ],
)
@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_colours_that_no_tag_explains_are_read_as_players_do(
    tmp_path: Path, size: tuple[int, int], matrix: int, assumed: str, codec: str
) -> None:
    # Encoded by a matrix that the file then does not name.
    frames = patches(*size)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=24, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            coded = frame.reformat(format="yuv444p", dst_colorspace=matrix if matrix == 1 else 5)
            coded.colorspace, coded.color_range = 2, 0
            container.mux(stream.encode(coded))
        container.mux(stream.encode(None))
    info = probe(path)
    assert info.reading.matrix == assumed
    assert codes(info) == ["untagged"]
    assert np.abs(np.subtract(colours_of(path, info), COLOURS)).max() <= 2
    ((_, quick),) = decode_frames(path, [1])
    ((_, known),) = decode_frames(path, [1], info.reading)
    assert np.array_equal(quick, known)


@pytest.mark.parametrize("tags", [Tags(1, 1), Tags(1, 2), Tags(6, 1), Tags(5, 2), Tags(9, 1)])
@pytest.mark.parametrize("width", [64, 1280])
def test_tags_are_followed_at_any_size(tmp_path: Path, tags: Tags, width: int) -> None:
    path = encode_tagged(tmp_path / "a.mkv", patches(width, 64), tags=tags)
    info = probe(path)
    assert info.reading == Reading()
    assert info.notes == ()
    assert np.abs(np.subtract(colours_of(path, info), COLOURS)).max() <= 3


@pytest.mark.parametrize("matrix", [8, 10, 13, 14])
def test_a_matrix_that_libav_would_misread_is_refused(tmp_path: Path, matrix: int) -> None:
    path = encode_tagged(tmp_path / "a.mkv", noise(2), tags=Tags(matrix))
    with pytest.raises(MediaFault, match="colour matrix") as caught:
        probe(path)
    assert caught.value.code == "unknown-colours"


def test_scenes_are_found_whatever_the_reading(tmp_path: Path) -> None:
    frames = np.concatenate([np.full((20, 64, 96, 3), level, np.uint8) for level in (30, 220)])
    path = encode_tagged(tmp_path / "a.mkv", frames, tags=UNTAGGED, aspect=Fraction(4, 3))
    info = probe(path)
    assert split_scenes(path, reading=info.reading) == [(0, 20), (20, 40)]


def tracks(path: Path, *levels: tuple[int, int, int, Disposition]) -> Path:
    """Write video tracks of (side, grey level, number of frames, disposition)."""
    with av.open(str(path), "w") as container:
        streams = []
        for side, level, num_frames, disposition in levels:
            stream: Any = container.add_stream("libx264", rate=24)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            stream.disposition = disposition
            streams.append((stream, level, num_frames))
        for stream, level, num_frames in streams:
            pixels = np.full((stream.height, stream.width, 3), level, np.uint8)
            for _ in range(num_frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode(None))
    return path


NONE, DEFAULT = Disposition(0), Disposition.default


@pytest.mark.parametrize(
    ("levels", "side", "number"),
    [
        (((32, 50, 5, NONE), (64, 100, 5, NONE)), 64, 1),
        (((64, 50, 5, NONE), (32, 100, 5, DEFAULT)), 32, 1),
        (((64, 50, 5, DEFAULT), (96, 100, 5, NONE)), 64, 0),
        (((96, 50, 1, DEFAULT), (32, 100, 5, NONE)), 32, 1),
        (((64, 50, 5, NONE), (64, 100, 5, NONE)), 64, 0),
    ],
)
def test_the_default_track_is_read_then_the_largest_and_never_a_single_picture(
    tmp_path: Path, levels: Any, side: int, number: int
) -> None:
    path = tracks(tmp_path / "a.mkv", *levels)
    info = probe(path)
    assert (info.width, info.num_frames, info.reading.track) == (side, 5, number)
    assert "tracks" in codes(info)
    ((_, pixels),) = decode_frames(path, [2], info.reading)
    assert abs(int(pixels.mean()) - levels[number][1]) <= 2


def test_a_file_of_a_single_picture_is_no_video(tmp_path: Path) -> None:
    for path in (
        encode(tmp_path / "a.mp4", noise(1)),
        tracks(tmp_path / "b.mkv", (64, 50, 1, DEFAULT), (32, 50, 1, NONE)),
    ):
        with pytest.raises(MediaFault, match="single picture") as caught:
            probe(path)
        assert caught.value.code == "no-video-stream"


def test_a_pipe_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(MediaFault, match="named pipe"):
        probe(tmp_path / "a.mp4")


def said_of(path: Path) -> Said:
    with opened(path) as container:
        track = choose_track(container, path)
        header = Header.of(track)
        return Said.of(path.name, track, header, next(container.decode(track.stream)))


def test_dolby_vision_is_read_only_where_others_can_show_its_picture(tmp_path: Path) -> None:
    for name, tags in (("base.mkv", Tags(9, 1, 9, 18)), ("alone.mkv", UNTAGGED)):
        encode_tagged(tmp_path / name, noise(2), tags=tags)
    # libav has no encoder that writes it: only the mark is put on.
    base, alone = (
        replace(said_of(tmp_path / name), is_dolby_vision=True)
        for name in ("base.mkv", "alone.mkv")
    )
    assert choose(base, None, Choices()).reading.transfer == "hlg"
    with pytest.raises(MediaFault, match=r"alone\.mkv is Dolby Vision") as caught:
        choose(alone, None, Choices())
    assert caught.value.code == "dolby-vision"


@pytest.mark.parametrize(
    ("degrees", "is_told"), [(45, True), (88, True), (90, False), (0.2, False)]
)
def test_a_rotation_that_is_no_quarter_turn_is_told(
    tmp_path: Path, degrees: float, is_told: bool
) -> None:
    cos, sin = (round(f(math.radians(degrees)) * (1 << 16)) for f in (math.cos, math.sin))
    matrix = (cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    info = probe(encode(tmp_path / "a.mov", noise(2), "png", "rgb24", matrix=matrix))
    assert ("rotation" in codes(info)) == is_told
    assert info.is_rotated == (degrees > 45)


def test_pictures_of_gigabytes_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "a.avi", noise(2), "rawvideo").read_bytes())
    place = data.index(b"strf") + 12
    data[place : place + 8] = (10000).to_bytes(4, "little") * 2
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(MediaFault, match="10000x10000") as caught:
        probe(tmp_path / "a.avi")
    assert caught.value.code == "too-large"
