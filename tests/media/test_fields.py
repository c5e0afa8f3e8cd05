"""Interlaced video is deinterlaced or refused; what only calls itself so is left alone."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hvkf.media.errors import MediaFault
from hvkf.media.reading import Choices
from hvkf.records import Reading
from hvkf.video import VideoInfo, decode_frames, probe
from tests.videos import Frames, encode_tagged

SIZE = 64


def bar_at(time: float) -> Frames:
    """A white bar that moves 3 pixels a field."""
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    left = int(time * 3) % (SIZE - 8)
    frame[:, left : left + 8] = 255
    return frame


def woven(num_frames: int, order: str) -> Frames:
    """Weave fields of 2 * num_frames times."""
    frames = []
    for number in range(num_frames):
        early, late = bar_at(2 * number), bar_at(2 * number + 1)
        frame = early.copy()
        rows = slice(1, None, 2) if order == "tff" else slice(0, None, 2)
        frame[rows] = late[rows]
        frames.append(frame)
    return np.stack(frames)


def progressive(num_frames: int) -> Frames:
    return np.stack([bar_at(2 * number) for number in range(num_frames)])


def comb(frame: Frames) -> float:
    """Mean difference of neighbouring rows, less that of rows two apart."""
    rows = frame[..., 0].astype(int)
    return float(np.abs(np.diff(rows, axis=0)).mean() - np.abs(rows[2:] - rows[:-2]).mean())


def decoded(path: Path, info: VideoInfo, reading: Reading | None) -> list[Frames]:
    return [pixels for _, pixels in decode_frames(path, range(info.num_frames), reading)]


def codes(info: VideoInfo) -> list[str]:
    return [note.code for note in info.notes]


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_fields_of_two_times_are_made_frames(tmp_path: Path, name: str, order: str) -> None:
    path = encode_tagged(tmp_path / name, woven(16, order), pix_fmt="yuv422p", fields=order)
    assert max(comb(frame) for frame in decoded(path, probe(path), Reading())) > 20
    info = probe(path)
    assert (info.num_frames, info.reading.fields) == (16, "flagged")
    assert codes(info) == ["interlaced"]
    for reading in (info.reading, None):
        frames = decoded(path, info, reading)
        assert len(frames) == 16
        # bwdif knows no frame before the first and after the last.
        assert max(comb(frame) for frame in frames[1:-1]) < 4
    # Each frame shows what its first field shows.
    for number in range(1, 15):
        assert np.abs(frames[number].astype(int) - bar_at(2 * number)).mean() < 10


def test_frames_are_the_same_whichever_are_wanted(tmp_path: Path) -> None:
    path = encode_tagged(tmp_path / "a.mp4", woven(12, "tff"), pix_fmt="yuv422p", fields="tff")
    info = probe(path)
    whole = decoded(path, info, info.reading)
    for wanted in ([11], [3, 7], [0]):
        for index, pixels in decode_frames(path, wanted, info.reading):
            assert np.array_equal(pixels, whole[index])


def test_the_setting_refuses_interlaced_videos(tmp_path: Path) -> None:
    path = encode_tagged(tmp_path / "a.mp4", woven(8, "tff"), pix_fmt="yuv422p", fields="tff")
    with pytest.raises(MediaFault, match=r"ingest\.interlaced") as caught:
        probe(path, Choices(interlaced="refuse"))
    assert caught.value.code == "interlaced"


@pytest.mark.parametrize("choice", ["deinterlace", "refuse"])
def test_progressive_frames_that_are_flagged_stay_as_they_are(tmp_path: Path, choice: Any) -> None:
    path = encode_tagged(tmp_path / "a.mp4", progressive(16), pix_fmt="yuv422p", fields="tff")
    info = probe(path, Choices(interlaced=choice))
    assert codes(info) == ["progressive"]
    assert info.reading == Reading()


def test_a_still_video_is_taken_at_its_word(tmp_path: Path) -> None:
    frames = np.stack([bar_at(4)] * 6)
    path = encode_tagged(tmp_path / "a.mp4", frames, pix_fmt="yuv422p", fields="tff")
    assert probe(path).reading.fields == "flagged"


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlacing_that_only_the_container_tells_is_found(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv422p"
        stream.codec_context.field_order = 2 if order == "tff" else 3
        for pixels in woven(12, order):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv422p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert info.reading.fields in (order, "flagged")
    assert "interlaced" in codes(info)
    frames = decoded(path, info, info.reading)
    assert max(comb(frame) for frame in frames[1:-1]) < 4


def test_only_the_interlaced_part_of_a_mixed_video_is_touched(tmp_path: Path) -> None:
    kinds = [
        encode_tagged(tmp_path / "p.h264", progressive(10), pix_fmt="yuv422p"),
        encode_tagged(tmp_path / "i.h264", woven(10, "tff"), pix_fmt="yuv422p", fields="tff"),
    ]
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(kind.read_bytes() for kind in kinds))
    info = probe(path)
    assert "10 of its 20 frames" in next(n.message for n in info.notes if n.code == "interlaced")
    plain, read = decoded(path, info, Reading()), decoded(path, info, info.reading)
    assert all(np.array_equal(a, b) for a, b in zip(plain[:9], read[:9], strict=True))
    assert max(comb(frame) for frame in read[1:-1]) < 4
