"""A file that is cut off, damaged or no video is a fault with a code, never wrong pixels."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from av.stream import Disposition
from hypothesis import given
from hypothesis import strategies as st

from hvkf.errors import BadInput
from hvkf.media.errors import MediaFault
from hvkf.media.scenes import split_scenes
from hvkf.media.writing import write_mp4, write_png
from hvkf.video import decode_frames, probe
from tests.videos import add_sound, encode, in_one_folder, moving_frames, noise, real_clips


@pytest.fixture(scope="module")
def clips() -> Path:
    return real_clips()


def fault_of(read: Callable[[Path], object], path: Path) -> MediaFault:
    with pytest.raises(MediaFault) as caught:
        read(path)
    assert path.name in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Hold one video per container, as bytes: MP4 with its index before and behind."""
    folder = tmp_path_factory.mktemp("intact")
    frames = noise(24)
    write_mp4(folder / "index-first.mp4", frames)
    encode(folder / "index-last.mp4", frames, "libx264")
    encode(folder / "a.mkv", frames, "libx264")
    encode(folder / "a.webm", frames[:8], "libvpx")
    encode(folder / "a.avi", frames)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@given(st.data())
@in_one_folder
def test_a_file_cut_off_anywhere_is_found(
    tmp_path: Path, intact: dict[str, bytes], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(intact)))
    # The last box of an MP4 may be one that no picture needs.
    num_kept = data.draw(st.integers(64, int(len(intact[name]) * 0.98)))
    path = tmp_path / name
    path.write_bytes(intact[name][:num_kept])
    assert fault_of(probe, path).code == "truncated"
    assert fault_of(lambda p: list(decode_frames(p, [0])), path).code == "truncated"
    assert fault_of(split_scenes, path).code == "truncated"


def test_intact_files_are_not_taken_for_cut_off(tmp_path: Path, intact: dict[str, bytes]) -> None:
    for name, data in intact.items():
        (tmp_path / name).write_bytes(data)
        assert probe(tmp_path / name).num_frames == (8 if name == "a.webm" else 24)


def test_a_hole_in_the_pictures_is_a_fault_but_frames_before_it_can_be_read(
    clips: Path, tmp_path: Path
) -> None:
    data = bytearray((clips / "bikes.mp4").read_bytes())
    data[200_000:260_000] = bytes(60_000)
    path = tmp_path / "hole.mp4"
    path.write_bytes(data)
    fault = fault_of(probe, path)
    assert fault.code == "corrupt"
    assert "frame " in str(fault)
    assert len(list(decode_frames(path, range(33)))) == 33
    assert fault_of(lambda p: list(decode_frames(p, [249])), path).code == "corrupt"


def test_damage_that_the_decoder_hides_is_a_fault(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "carphone_pristine.mp4").read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "flipped.mp4"
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 120
    assert fault_of(probe, path).code == "corrupt"


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def prose(path: Path) -> None:
    path.write_text("this is not a video, whatever its name says\n" * 50)


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    assert not path.exists()


def playlist(path: Path) -> None:
    encode(path.with_name("real.ts"), moving_frames(5), "mpeg2video")
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nreal.ts\n#EXT-X-ENDLIST\n")


def picture(path: Path) -> None:
    write_png(path, noise(1)[0])


def sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        add_sound(container)


def sound_with_cover(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        add_sound(container)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(noise(1)[0], format="rgb24")))
        container.mux(cover.encode(None))


def no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def no_width(path: Path) -> None:
    made = encode(path.with_suffix(".avi"), noise(3), "rawvideo")
    data = bytearray(made.read_bytes())
    place = data.index(b"strf") + 12
    assert int.from_bytes(data[place : place + 4], "little") == 64
    data[place : place + 4] = bytes(4)
    path.write_bytes(data)


def two_sizes(path: Path) -> None:
    parts = [
        encode(path.with_name(f"{width}.h264"), noise(5, width, 48), "libx264").read_bytes()
        for width in (64, 96)
    ]
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (empty_file, "empty"),
        (no_frames, "empty"),
        (prose, "unreadable"),
        (folder, "unreadable"),
        (playlist, "unreadable"),
        (picture, "unreadable"),
        (nothing, "missing"),
        (sound, "no-video-stream"),
        (sound_with_cover, "no-video-stream"),
        (no_width, "zero-size"),
        (two_sizes, "size-changes"),
    ],
)
def test_a_file_that_is_no_usable_video_is_a_fault_with_a_code(
    tmp_path: Path, make: Callable[[Path], None], code: str
) -> None:
    path = tmp_path / "a.mp4"
    make(path)
    assert fault_of(probe, path).code == code
    assert fault_of(split_scenes, path).code == code
    reading = fault_of(lambda p: list(decode_frames(p, [9])), path)
    # That there is no frame 0 is all that reading single frames can say of a video without any.
    assert reading.code == ("too-short" if make is no_frames else code)


def test_a_fault_ends_a_process_as_bad_input_does_and_survives_pickling() -> None:
    fault = MediaFault("corrupt", "a.mp4 is damaged")
    copy = pickle.loads(pickle.dumps(fault))
    assert (copy.code, str(copy), copy.exit_code) == ("corrupt", "a.mp4 is damaged", 65)
    assert isinstance(copy, BadInput)
