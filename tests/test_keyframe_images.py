"""Keyframe images: what people's files hold, and what is refused."""

import ctypes
import gc
import io
import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageOps

from hvkf import keyframe_images
from hvkf.keyframe_images import ImageFault, decode_image, decode_keyframe, look_at
from hvkf.resize import resize_to_cover

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def picture(width: int = 6, height: int = 4) -> Image.Image:
    """Red, but for a green column at the left."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (0, 0, 1, height))
    return image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats_give_the_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode_image(encoded(picture(), kind, **options), "a")
    assert pixels.shape == (4, 6, 3)
    assert tuple(pixels[0, 0]) == GREEN
    assert tuple(pixels[3, 5]) == RED


def test_a_photo_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn a quarter to the right
    pixels = decode_image(encoded(picture(), "PNG", exif=exif), "a")
    assert pixels.shape == (6, 4, 3)
    assert {tuple(pixel) for pixel in pixels[0]} == {GREEN}
    assert {tuple(pixel) for pixel in pixels[5]} == {RED}


def test_transparency_shows_white() -> None:
    image = picture().convert("RGBA")
    image.putpixel((0, 0), (0, 0, 255, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    pixels = decode_image(encoded(image), "a")
    assert tuple(pixels[0, 0]) == WHITE
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1
    assert tuple(pixels[0, 5]) == RED


def test_a_transparent_palette_shows_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    pixels = decode_image(encoded(image, transparency=0), "a")
    assert [tuple(pixel) for pixel in pixels[0]] == [WHITE, BLUE]


def test_sixteen_bits_of_grey_keep_their_range() -> None:
    values = np.array([[0, 128 * 257, 65535]], dtype=np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values)), "a")
    assert pixels[0].tolist() == [[0, 0, 0], [128, 128, 128], [255, 255, 255]]


def test_print_colours_become_red_green_blue() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decode_image(encoded(image, "JPEG"), "a")
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels[8, 8].astype(int) - RED).max() < 8


def test_the_picture_of_a_camera_file_with_a_preview_is_taken() -> None:
    data = encoded(picture(32, 32), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decode_image(data, "a").shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"no image", "unreadable"),
        (encoded(picture(64, 64))[:-40], "unreadable"),
        (encoded(picture(64, 64), "JPEG")[:300], "unreadable"),
        (
            encoded(
                picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4), BLUE)]
            ),
            "animated",
        ),
        (
            encoded(
                picture(), "PNG", save_all=True, append_images=[Image.new("RGB", (6, 4), BLUE)]
            ),
            "animated",
        ),
        (encoded(Image.new("1", (16385, 4097))), "too-large"),
        (encoded(Image.new("1", (20000, 20000))), "too-large"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "unsupported"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable"),
    ],
)
def test_what_cannot_be_a_keyframe_has_a_code_and_names_the_file(data: bytes, code: str) -> None:
    with pytest.raises(ImageFault, match=r"in/a\.png") as caught:
        decode_image(data, "in/a.png")
    assert caught.value.code == code


def test_a_fault_can_cross_processes() -> None:
    fault = pickle.loads(pickle.dumps(ImageFault("empty", "a is empty")))
    assert (fault.code, str(fault)) == ("empty", "a is empty")


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(5, 3), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data, "a"), expected)
    assert look_at(data, "a")[:2] == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("factor", [1, 3])
def test_bands_of_a_picture_are_converted_as_the_whole_is(
    monkeypatch: pytest.MonkeyPatch, factor: int
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (50, 41, 4), np.uint8)
    data = encoded(Image.fromarray(noise, "RGBA"))
    whole = decode_image(data, "a")
    monkeypatch.setattr(keyframe_images, "BAND_PIXELS", 41 * 7)
    monkeypatch.setattr(keyframe_images, "MAX_WHOLE_PIXELS", 1000)
    cover = (41 // factor, 50 // factor)
    expected = np.asarray(Image.fromarray(whole).reduce(factor))
    np.testing.assert_array_equal(decode_image(data, "a", cover), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_that_is_reduced_gives_nearly_the_keyframe_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, kind: str, orientation: int
) -> None:
    across, down = np.meshgrid(np.linspace(0, 4, 500), np.linspace(0, 3, 300))
    waves = np.stack([np.sin(across), np.cos(down), np.sin(across + down)], axis=-1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray((waves * 120 + 128).astype(np.uint8))
    data = encoded(image, kind, exif=exif)
    cover = (160, 96) if orientation == 1 else (96, 160)
    whole = resize_to_cover(decode_image(data, "a"), *cover)
    monkeypatch.setattr(keyframe_images, "MAX_WHOLE_PIXELS", 1000)
    assert decode_image(data, "a", cover).size < decode_image(data, "a").size / 3
    reduced = decode_keyframe(data, "a", *cover)
    assert np.abs(reduced.astype(int) - whole).max() <= 6
    assert np.abs(reduced.astype(int) - whole).mean() < 1


def large(mode: str, kind: str, side: int = 8192) -> bytes:
    """A picture of up to 67 megapixels in one colour: little data."""
    colour = {"RGBA": (9, 200, 77, 99), "RGB": (9, 200, 77), "CMYK": (9, 200, 77, 3)}
    options = {"progressive": True, "subsampling": 0} if kind == "JPEG" else {}
    options = {"method": 0} if kind == "WEBP" else options
    options = {"speed": 10, "max_threads": 1} if kind == "AVIF" else options
    if mode == "I;16":
        return encoded(Image.fromarray(np.full((side, side), 777, np.uint16)), kind)
    image = Image.new(mode, (side, side), colour.get(mode, 3))
    if mode == "P":
        image.putpalette([*RED, *BLUE])
        options["transparency"] = 0
    return encoded(image, kind, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "kind", "side"),
    [
        ("RGBA", "PNG", 8192),
        ("RGB", "PNG", 8192),
        ("I;16", "PNG", 8192),
        ("P", "PNG", 8192),
        ("RGB", "JPEG", 8192),
        ("CMYK", "JPEG", 6928),
        ("RGBA", "TIFF", 8192),
        ("RGB", "BMP", 8192),
        ("RGBA", "WEBP", 4898),
        ("RGBA", "AVIF", 4898),
    ],
)
def test_no_picture_takes_500_mb(mode: str, kind: str, side: int) -> None:
    """The first of these took 1,922 MB for 0.27 MB of PNG."""
    data = large(mode, kind, side)
    gc.collect()
    before_mb = peak_mb(reset=True)
    pixels = decode_keyframe(data, "a", 960, 544)
    assert pixels.shape == (544, 960, 3)
    assert peak_mb() - before_mb < 500


def test_a_picture_with_transparency_takes_ten_bytes_a_pixel() -> None:
    """It took 28."""
    data = large("RGBA", "PNG", 4608)  # a size beside which a band of rows is little
    gc.collect()
    before_mb = peak_mb(reset=True)
    decode_image(data, "a")
    assert peak_mb() - before_mb < 10 * 4608**2 / 2**20


def test_planning_reads_the_size_of_a_png_without_decoding_it() -> None:
    """Pillow decodes the whole picture when it is asked for EXIF."""
    data = large("RGB", "PNG", 4096)
    gc.collect()
    before_mb = peak_mb(reset=True)
    assert look_at(data, "a")[:2] == (4096, 4096)
    assert peak_mb() - before_mb < 20


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_what_no_decoder_can_shrink_may_have_fewer_pixels(kind: str) -> None:
    small = large("RGB", kind, 64)
    with mock.patch.dict(keyframe_images.MAX_PIXELS_OF, {kind: 64 * 64 - 1}):
        with pytest.raises(ImageFault, match="may have") as caught:
            decode_image(small, "a")
        assert caught.value.code == "too-large"


def test_a_jpeg_of_four_colours_may_have_fewer_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decoder took 516 MB for 67 megapixels."""
    data = large("CMYK", "JPEG", 64)
    monkeypatch.setattr(keyframe_images, "MAX_CMYK_JPEG_PIXELS", 64 * 64 - 1)
    with pytest.raises(ImageFault, match="JPEG in CMYK may have") as caught:
        decode_image(data, "a")
    assert caught.value.code == "too-large"
    assert decode_image(large("RGB", "JPEG", 64), "a").shape == (64, 64, 3)


def test_an_avif_that_its_decoder_fails_on_is_damaged() -> None:
    """Its decoder raises RuntimeError."""
    data = encoded(picture(64, 64), "AVIF")
    with pytest.raises(ImageFault, match="a is damaged") as caught:
        decode_image(data[:-10] + bytes(10), "a")
    assert caught.value.code == "unreadable"


def peak_mb(*, reset: bool = False) -> float:
    """The most memory that this process held, since it was reset."""
    if reset:
        # What was freed and is kept for later would hide what is taken anew.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
