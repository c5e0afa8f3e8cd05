"""Converts pictures to sRGB by the colour profile (ICC) that their file carries."""

import io
import itertools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

# Whatever Little CMS and Pillow say of a profile that is damaged or of another kind.
PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError)
MAX_PROFILE_BYTES = 8 << 20
SAME_LEVELS = 2
"""A profile that moves no colour by more than this many levels of 255 is taken for sRGB's own."""
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B")
GREY_LEVELS = tuple(range(0, 256, 5))
LEVELS = (0, 51, 102, 153, 204, 255)


class ColourConversion(NamedTuple):
    """How a picture's colours become sRGB.

    Attributes:
        mode: Pillow's mode that the transform takes.
        transform: None where the colours are sRGB's already, or taken as such.
        note: Why a profile was left out; empty where it was used or there is none.
    """

    mode: str
    transform: ImageCms.ImageCmsTransform | None = None
    note: str = ""

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Convert an image, without its transparency, to RGB."""
        if self.transform is None:
            return image.convert("RGB")
        return self.transform.apply(image.convert(self.mode))


def conversion_of(image: Image.Image) -> ColourConversion:
    """Find out how an image's colours become sRGB, from its header alone.

    A profile that is damaged, or of another kind of picture, is left out: the colours are taken as
    sRGB, as browsers do, and the note says so.
    """
    data = image.info.get("icc_profile")
    own = "CMYK" if image.mode == "CMYK" else "L" if image.mode in GREY_MODES else "RGB"
    if not data:
        return ColourConversion(own)
    if len(data) > MAX_PROFILE_BYTES:
        return ColourConversion(own, note="its colour profile is too large and was not used")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space, space)
        # Grey pictures often carry the profile of the colours that they were made from.
        if mode != own and (mode, own) != ("RGB", "L"):
            return ColourConversion(
                own, note=f"its colour profile is one of {space} and was not used"
            )
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, mode, "RGB")
        converted = ColourConversion(mode, transform)
        return ColourConversion(own) if _is_srgb(converted) else converted
    except PROFILE_ERRORS:
        return ColourConversion(own, note="its colour profile is damaged and was not used")


def _is_srgb(conversion: ColourConversion) -> bool:
    """Try a profile on a few colours: most say sRGB in other words, and rounding is no gain."""
    if conversion.mode == "CMYK":
        return False
    if conversion.mode == "L":
        colours = np.array(GREY_LEVELS, np.uint8)[None]
    else:
        colours = np.array(list(itertools.product(LEVELS, repeat=3)), np.uint8)[None]
    image = Image.fromarray(colours)
    moved = np.asarray(conversion.to_srgb(image)).astype(int) - np.asarray(image.convert("RGB"))
    return bool(np.abs(moved).max() <= SAME_LEVELS)
