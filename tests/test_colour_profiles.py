"""Pictures are converted to sRGB by their colour profiles, and bad profiles are said."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from hvkf.keyframe_images import decode_image, look_at
from tests import icc
from tests.test_keyframe_images import encoded

GREEN = (60, 200, 60)


def converted(image: Image.Image, profile: bytes) -> Image.Image:
    """What Little CMS makes of the whole picture."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    made = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert made is not None
    return made


def noise(mode: str) -> Image.Image:
    values = np.random.default_rng(5).integers(0, 256, (40, 50, 4), np.uint8)
    return (
        Image.fromarray(values, "CMYK") if mode == "CMYK" else Image.fromarray(values).convert(mode)
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_the_colours_of_a_phones_screen_become_srgb(kind: str) -> None:
    options: dict[str, dict[str, object]] = {
        "JPEG": {"quality": 100},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100},
    }
    image = Image.new("RGB", (64, 64), GREEN)
    data = encoded(image, kind, icc_profile=icc.display_p3(), **options.get(kind, {}))
    expected = converted(image, icc.display_p3()).getpixel((9, 9))
    assert expected == (0, 205, 0)
    assert np.abs(decode_image(data, "a")[9, 9].astype(int) - expected).max() <= 4
    assert look_at(data, "a").reading == "icc"


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", icc.display_p3()),
        ("L", icc.grey(1.0)),
        ("L", icc.display_p3()),
        ("CMYK", icc.cmyk()),
    ],
)
def test_every_kind_of_picture_is_converted_as_by_little_cms(mode: str, profile: bytes) -> None:
    image = noise(mode)
    data = encoded(image, "TIFF", icc_profile=profile)
    taken = image.convert("RGB") if mode == "L" and profile == icc.display_p3() else image
    expected = np.asarray(converted(taken, profile))
    assert not np.array_equal(expected, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(decode_image(data, "a"), expected)


def test_what_is_transparent_lies_on_white_after_its_colours_were_converted() -> None:
    image = Image.new("RGBA", (3, 1), (*GREEN, 255))
    image.putpixel((1, 0), (*GREEN, 0))
    image.putpixel((2, 0), (*GREEN, 128))
    pixels = decode_image(encoded(image, icc_profile=icc.display_p3()), "a")[0].tolist()
    assert pixels[:2] == [[0, 205, 0], [255, 255, 255]]
    assert np.abs(np.array(pixels[2]) - [127, 230, 127]).max() <= 1


def test_grey_with_transparency_and_sixteen_bits_follow_a_profile_of_grey() -> None:
    profile = icc.grey(1.0)
    expected = converted(Image.new("L", (1, 1), 64), profile).getpixel((0, 0))
    assert expected != (64, 64, 64)
    deep = Image.fromarray(np.full((1, 1), 64 * 257, np.uint16))
    for image in (Image.new("LA", (1, 1), (64, 255)), deep):
        assert tuple(decode_image(encoded(image, icc_profile=profile), "a")[0, 0]) == expected


def test_a_profile_that_says_srgb_leaves_every_pixel_as_it_is() -> None:
    image = noise("RGB")
    data = encoded(image, icc_profile=icc.srgb())
    np.testing.assert_array_equal(decode_image(data, "a"), np.asarray(image))
    assert look_at(data, "a")[2:] == ("", "")


@pytest.mark.parametrize(
    ("mode", "profile", "words"),
    [
        ("RGB", b"no profile", "is damaged and was not used"),
        ("RGB", icc.display_p3()[:200], "is damaged and was not used"),
        ("RGB", icc.cmyk(), "is one of CMYK and was not used"),
        ("CMYK", icc.display_p3(), "is one of RGB and was not used"),
        ("RGB", icc.grey(1.0), "is one of GRAY and was not used"),
    ],
)
def test_a_profile_that_cannot_be_used_is_left_out_and_said(
    mode: str, profile: bytes, words: str
) -> None:
    image = Image.new(mode, (2, 2))
    data = encoded(image, "TIFF", icc_profile=profile)
    np.testing.assert_array_equal(decode_image(data, "a"), np.asarray(image.convert("RGB")))
    look = look_at(data, "in/a.tif")
    assert look.note.startswith("in/a.tif: its colour profile ")
    assert look.note.endswith(words)
    assert look.reading == ""
