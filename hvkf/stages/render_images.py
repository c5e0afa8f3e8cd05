"""Keyframe images: their identity by content, and their pixels as a person sees them."""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hvkf.errors import BadInput
from hvkf.storage import FolderStore, Store

# Formats that Pillow reads by itself: others start programs, or are not pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
MAX_PIXELS = 1 << 26
NUM_READERS = 8
BACKDROP = "white"
DECODER_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageFault(BadInput):
    """One image cannot be a keyframe; `code` is what its failure is recorded under.

    Codes: `missing`, `outside` (a link leaves the manifest's folder), `empty`, `unreadable`,
    `too-large`, `animated`, `unsupported`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["ImageFault"], tuple[str, str]]:
        return type(self), (self.code, str(self))


def image_hashes(folder: Store, paths: Iterable[str]) -> dict[str, str | ImageFault]:
    """Hash images by their bytes, each path once; a fault stands in the place of a hash.

    Only what can be told without decoding is looked at: a damaged image may still have a hash.
    """
    distinct = sorted(set(paths))
    with ThreadPoolExecutor(NUM_READERS) as readers:
        hashes = readers.map(lambda path: _hash(folder, path), distinct)
        return dict(zip(distinct, hashes, strict=True))


def _hash(folder: Store, path: str) -> str | ImageFault:
    try:
        data = read_image_bytes(folder, path)
        _open(data, path).close()
    except ImageFault as fault:
        return fault
    return hashlib.sha256(data).hexdigest()


def read_image_bytes(folder: Store, path: str) -> bytes:
    """Read an image's file, which must lie in the folder when links are followed.

    Raises:
        ImageFault: missing, outside, or not readable.
    """
    if isinstance(folder, FolderStore):
        target = (folder.root / path).resolve()
        if not target.is_relative_to(folder.root.resolve()):
            raise ImageFault("outside", f"{path} leads out of the manifest's folder; copy it there")
    try:
        return folder.read(path)
    except FileNotFoundError:
        raise ImageFault("missing", f"there is no image {path}; copy it or correct it") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as fault:
        raise ImageFault("unreadable", f"{path} cannot be read: {fault.strerror}") from fault


def decode_image(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Decode an image to what a person sees: turned as its EXIF says, transparency on white.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        ImageFault: damaged, of more than 64 megapixels, animated, or of a kind without colours.
    """
    try:
        with _open(data, name) as image:
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright, name)
    except DECODER_FAULTS as fault:
        raise ImageFault("unreadable", f"{name} is damaged ({fault}); replace it") from fault


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageFault("empty", f"{name} is an empty file; copy it again")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        is_animated = getattr(image, "is_animated", False)
    except BOMBS as fault:
        raise ImageFault("too-large", f"{name} is too large: {fault}; shrink it") from fault
    except DECODER_FAULTS as fault:
        raise ImageFault(
            "unreadable", f"{name} is no image that can be read; use PNG, JPEG or WebP"
        ) from fault
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise ImageFault("too-large", f"{name} has {megapixels:.0f} megapixels; shrink it")
    # Cameras store previews behind the picture in MPO, a kind of JPEG.
    if is_animated and image.format != "MPO":
        raise ImageFault("animated", f"{name} is animated; export the frame that is meant")
    return image


def _to_rgb(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64) / 257.0
        return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ImageFault(
            "unsupported", f"{name} holds 32-bit values without a range; export it as 8-bit RGB"
        )
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        backdrop = Image.new("RGBA", picture.size, BACKDROP)
        image = Image.alpha_composite(backdrop, picture)
    return np.array(image.convert("RGB"))
