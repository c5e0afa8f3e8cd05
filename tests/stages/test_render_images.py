"""Keyframe images: what people's files hold, and what is refused."""

import contextlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvkf.stages.render_images import (
    ImageFacts,
    ImageFault,
    ImageFolders,
    decode_image,
    image_facts,
    read_image_bytes,
)
from hvkf.storage import FolderStore, file_sha256

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


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # of damage that it reads around
@given(st.data())
def test_damaged_bytes_give_an_image_or_a_fault_never_another_exception(
    data: st.DataObject,
) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    whole = bytearray(encoded(picture(24, 16), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    # Any exception but a fault fails the test.
    with contextlib.suppress(ImageFault):
        pixels = decode_image(bytes(whole[:cut]), "a")
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_images_are_named_by_content_and_faults_stand_in_their_place(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(picture()))
    (folder / "same.png").write_bytes(encoded(picture()))
    (folder / "text.png").write_bytes(b"no image")
    (folder / "folder.png").mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(picture()))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["a.png", "same.png", "text.png", "folder.png", "link.png", "gone.png", "a.png/b"]
    found = image_facts(ImageFolders(str(folder), str(tmp_path)), names)
    facts = ImageFacts(file_sha256(folder / "a.png"), 6, 4)
    assert found["a.png"] == found["same.png"] == facts
    codes = {name: fault.code for name, fault in found.items() if isinstance(fault, ImageFault)}
    assert codes == {
        "text.png": "unreadable",
        "folder.png": "unreadable",
        "link.png": "outside",
        "gone.png": "missing",
        "a.png/b": "unreadable",
    }


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert read_image_bytes(FolderStore(tmp_path), "b.png") == b"bytes"


def test_a_fault_can_cross_processes() -> None:
    fault = pickle.loads(pickle.dumps(ImageFault("empty", "a is empty")))
    assert (fault.code, str(fault)) == ("empty", "a is empty")
