"""Decodes image files of any origin to what a person sees, in bounded memory."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from hvkf.colour_profiles import ColourConversion, conversion_of
from hvkf.errors import BadInput
from hvkf.resize import resize_to_cover
from hvkf.user_files import reason_of, shortened

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]

# Formats that Pillow reads by itself: others start programs, or are not pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 1 << 26
MAX_PIXELS_OF = {"WEBP": 24_000_000, "AVIF": 24_000_000}
"""Of formats whose decoders take 15 to 18 bytes a pixel, and give no smaller picture."""
MAX_CMYK_JPEG_PIXELS = 48_000_000
"""JPEG's decoder keeps two bytes for each pixel and band where a file has several passes."""
MAX_WHOLE_PIXELS = 1 << 25
"""Pictures above this are shrunk while they are converted, if what they are for is smaller."""
BAND_PIXELS = 1 << 20
MAX_SHOWN_NAME = 160
BACKDROP = "white"
LYING_ORIENTATIONS = (5, 6, 7, 8)  # of EXIF's, these turn the picture by a quarter
# Whatever Pillow raises for a file that it cannot read: its plugins parse foreign bytes.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageFault(BadInput):
    """One image cannot be a keyframe; `code` is what its failure is recorded under.

    Codes: `missing`, `outside` (it lies outside of the manifest's folder), `empty`, `unreadable`,
    `too-large`, `animated`, `unsupported`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["ImageFault"], tuple[str, str]]:
        return type(self), (self.code, str(self))


def decode_keyframe(data: bytes, name: str, width: int, height: int) -> Pixels:
    """Decode an image and cut it to `width` x `height` pixels, as training cuts its frames.

    Returns:
        uint8 RGB [height, width, 3].

    Raises:
        ImageFault: see `decode_image`.
    """
    return resize_to_cover(decode_image(data, name, (width, height)), width, height)


def decode_image(data: bytes, name: str, cover: Size | None = None) -> Pixels:
    """Decode an image to what a person sees.

    It is turned as its EXIF says, converted to sRGB by its colour profile, and laid on white where
    it is transparent. Decoding takes less than 500 MB beside `data`.

    Args:
        data: The file's bytes.
        name: What messages call it.
        cover: Width and height that the picture has to cover. One of more than 33 megapixels is
            reduced by a whole factor as long as it does.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        ImageFault: damaged, animated, of a kind without colours, or of more than 67 megapixels (24
            in WebP and AVIF, 48 in JPEG of four colours, whose decoders take more memory).
    """
    try:
        pixels, orientation = _decode(data, name, cover)
    except DECODER_ERRORS as error:
        raise ImageFault(
            "unreadable", f"{shown_name(name)} is damaged ({reason_of(error)}); replace it"
        ) from error
    return np.ascontiguousarray(_turned(pixels, orientation))


class Look(NamedTuple):
    """What is known of an image without decoding it.

    Attributes:
        width: Pixels, as displayed.
        height: Pixels, as displayed.
        reading: How its pixels differ from those that the file holds, for what names results:
            `icc` (converted to sRGB), `reduced` (too large to be decoded whole), both, or nothing.
        note: What the user should know of it.
    """

    width: int
    height: int
    reading: str
    note: str


def look_at(data: bytes, name: str) -> Look:
    """Read an image's header.

    Raises:
        ImageFault: it is no image that can be used.
    """
    with _open(data, name) as image:
        width, height = image.size
        conversion = conversion_of(image)
        reading = ["icc"] if conversion.transform is not None else []
        reading += ["reduced"] if width * height > MAX_WHOLE_PIXELS else []
        try:
            # Not the image's own method: that of PNG decodes it, in case EXIF stands at its end.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        except DECODER_ERRORS:  # a damaged EXIF block: decoding will tell
            orientation = None
    if orientation in LYING_ORIENTATIONS:
        width, height = height, width
    note = f"{shown_name(name)}: {conversion.note}" if conversion.note else ""
    return Look(width, height, "+".join(reading), note)


def shown_name(name: str) -> str:
    """Give a path as messages show it."""
    return shortened(name, MAX_SHOWN_NAME)


def _open(data: bytes, name: str) -> Image.Image:
    name = shown_name(name)
    if not data:
        raise ImageFault("empty", f"{name} is an empty file; copy it again")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        is_animated = getattr(image, "is_animated", False)
    except BOMBS as error:
        raise ImageFault("too-large", f"{name} is too large: {error}; shrink it") from error
    except DECODER_ERRORS as error:
        raise ImageFault(
            "unreadable", f"{name} is no image that can be read; use PNG, JPEG or WebP"
        ) from error
    _check_size(image, name)
    # Cameras store previews behind the picture in MPO, a kind of JPEG.
    if is_animated and image.format != "MPO":
        raise ImageFault("animated", f"{name} is animated; export the frame that is meant")
    return image


def _check_size(image: Image.Image, name: str) -> None:
    kind = image.format or ""
    limit = MAX_PIXELS_OF.get(kind, MAX_PIXELS)
    if kind in ("JPEG", "MPO") and image.mode == "CMYK":
        kind, limit = "JPEG in CMYK", MAX_CMYK_JPEG_PIXELS
    if image.width * image.height > limit:
        raise ImageFault(
            "too-large",
            f"{name} has {image.width * image.height / 1e6:.0f} megapixels, and {kind} may "
            f"have {limit / 1e6:.0f}; shrink it",
        )


def _decode(data: bytes, name: str, cover: Size | None) -> tuple[Pixels, int]:
    """Decode without turning; returns the pixels and EXIF's orientation, from 1 to 8."""
    with _open(data, name) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if cover and orientation in LYING_ORIENTATIONS:
            cover = cover[1], cover[0]
        factor = 1
        if cover is not None and image.width * image.height > MAX_WHOLE_PIXELS:
            factor = _reduction(image, cover)
            # JPEG's decoder can give an eighth, a quarter or a half; other formats' do nothing.
            image.draft(None, (image.width // factor, image.height // factor))
            factor = _reduction(image, cover)
        image.load()
        if image.mode in ("I", "F"):
            raise ImageFault(
                "unsupported",
                f"{shown_name(name)} holds 32-bit values without a range; export it as 8-bit RGB",
            )
        return _in_bands(image, conversion_of(image), factor), orientation


def _reduction(image: Image.Image, cover: Size) -> int:
    """Give the largest whole factor by which the image can shrink and still cover that size."""
    return max(1, min(image.width // cover[0], image.height // cover[1]))


def _in_bands(image: Image.Image, colours: ColourConversion, factor: int) -> Pixels:
    """Convert an image to RGB a few rows at a time: a second copy of it would not fit."""
    width, height = image.size
    pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    rows = max(1, BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        band = _to_rgb(image.crop((0, top, width, min(top + rows, height))), colours)
        band = band.reduce(factor) if factor > 1 else band
        pixels[top // factor : top // factor + band.height] = np.asarray(band)
    return pixels


def _to_rgb(image: Image.Image, colours: ColourConversion) -> Image.Image:
    """Convert to sRGB, with white behind what is transparent."""
    if image.mode.startswith("I;16"):
        # Rounded: a sixteen-bit level is 257 eight-bit ones.
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return colours.to_srgb(Image.fromarray(grey.astype(np.uint8)))
    if not image.has_transparency_data:
        return colours.to_srgb(image)
    alpha = image.convert("RGBA").getchannel("A")
    picture = Image.merge("RGBA", (*colours.to_srgb(image).split(), alpha))
    backdrop = Image.new("RGBA", picture.size, BACKDROP)
    return Image.alpha_composite(backdrop, picture).convert("RGB")


def _turned(pixels_HWC: Pixels, orientation: int) -> Pixels:
    """Turn and mirror as EXIF's orientation says; any but 2 to 8 leaves the pixels as they are."""
    if orientation in LYING_ORIENTATIONS:
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    return pixels_HWC
