"""Transparent video is laid over white, as keyframes are, whichever way it keeps transparency."""

from pathlib import Path

import numpy as np
import pytest

from hvkf.media import reading as reading_module
from hvkf.media.alpha import over_white
from hvkf.records import Reading
from hvkf.video import decode_frames, probe
from tests.videos import Frames, Tags, encode_tagged


def half_transparent(alpha: int) -> Frames:
    """Green on the left; on the right red of this alpha."""
    frame = np.zeros((64, 64, 4), np.uint8)
    frame[:, :32] = (0, 255, 0, 255)
    frame[:, 32:] = (255, 0, 0, alpha)
    return np.stack([frame] * 4)


KINDS = [
    ("a.mov", "prores_ks", "yuva444p10le"),
    ("a.mov", "qtrle", "argb"),
    ("a.mov", "png", "rgba"),
    ("a.apng", "apng", "rgba"),
    ("a.mkv", "ffv1", "yuva420p"),
    ("a.webm", "libvpx-vp9", "yuva420p"),
    ("a.webm", "libvpx", "yuva420p"),
    ("a.mkv", "libvpx-vp9", "yuva420p"),
]


def right_of(path: Path, reading: Reading | None) -> list[int]:
    ((_, pixels),) = decode_frames(path, [2], reading)
    colour: list[int] = pixels[32, 50].tolist()
    assert np.abs(pixels[32, 10].astype(int) - (0, 255, 0)).max() <= 12
    return colour


def tags_of(pix_fmt: str) -> Tags:
    return Tags(6, 1) if pix_fmt.startswith("yuv") else Tags(0, 2)


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), KINDS)
@pytest.mark.parametrize(("alpha", "shown"), [(0, (255, 255, 255)), (51, (255, 204, 204))])
def test_what_is_transparent_shows_white(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, alpha: int, shown: tuple[int, int, int]
) -> None:
    frames = half_transparent(alpha)
    path = encode_tagged(tmp_path / name, frames, codec, pix_fmt, tags=tags_of(pix_fmt))
    info = probe(path)
    assert info.num_frames == 4
    assert info.reading.alpha == "white"
    assert "transparent" in [note.code for note in info.notes]
    for reading in (info.reading, None):
        assert np.abs(np.subtract(right_of(path, reading), shown)).max() <= 12


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), KINDS)
def test_an_opaque_video_is_read_as_if_it_could_not_be_transparent(
    tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    frames = half_transparent(255)
    path = encode_tagged(tmp_path / name, frames, codec, pix_fmt, tags=tags_of(pix_fmt))
    info = probe(path)
    assert info.reading == Reading()
    for (_, quick), (_, known) in zip(
        decode_frames(path, range(4)), decode_frames(path, range(4), info.reading), strict=True
    ):
        assert np.abs(quick.astype(int) - known).max() <= (0 if "vpx" not in codec else 2)


def test_transparency_that_comes_late_is_seen(tmp_path: Path) -> None:
    frames = half_transparent(255)
    frames[3, :, 32:, 3] = 0
    path = encode_tagged(tmp_path / "a.mov", frames, "qtrle", "argb", tags=Tags(0, 2))
    info = probe(path)
    assert info.reading.alpha == "white"
    ((_, pixels),) = decode_frames(path, [3], info.reading)
    assert pixels[32, 50].tolist() == [255, 255, 255]


def test_the_colours_of_a_palette_may_be_transparent(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame, "RGBA") for frame in half_transparent(0)]
    pictures = [Image.eval(picture, lambda level: level) for picture in pictures]
    # Frames that are equal would be made one.
    for number, picture in enumerate(pictures):
        picture.putpixel((number, 0), (0, 0, 255, 255))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], disposal=2)
    info = probe(tmp_path / "a.gif")
    assert info.num_frames == 4
    assert right_of(tmp_path / "a.gif", info.reading) == [255, 255, 255]


def test_pictures_are_mixed_with_white_by_their_alpha() -> None:
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mixed = over_white(rgb, alpha)
    share = alpha[..., None] / 255
    assert np.abs(mixed - (rgb * share + 255 * (1 - share))).max() <= 0.501
    assert np.array_equal(mixed[15, 15], rgb[15, 15])
    assert mixed[0, 0].tolist() == [255, 255, 255]


def test_transparency_that_no_decoder_shows_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = half_transparent(0)
    path = encode_tagged(tmp_path / "a.webm", frames, "libvpx-vp9", "yuva420p", tags=Tags(6))
    monkeypatch.setattr(reading_module, "ALPHA_DECODERS", {})
    info = probe(path)
    assert info.reading == Reading()
    assert [note.code for note in info.notes] == ["hidden-alpha"]
