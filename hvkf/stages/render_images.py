"""Keyframe images: their identity by content, and their pixels as a person sees them."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, lru_cache, partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from hvkf.errors import BadInput
from hvkf.model_source import WORKSPACE_SCHEME
from hvkf.progress import progress
from hvkf.storage import FolderStore, Store, open_folder

# Formats that Pillow reads by itself: others start programs, or are not pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
MAX_PIXELS = 1 << 26
NUM_READERS = 8
NUM_S3_READERS = 32
IMAGES_AT_ONCE = 256
MANY_IMAGES = 2000
FIRST_LYING_ORIENTATION = 5  # EXIF's 5 to 8 turn the picture by a quarter
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


class ImageFacts(NamedTuple):
    """What is known of an image without decoding it; sides are as displayed."""

    sha256: str
    width: int
    height: int


class ImageFolders:
    """Finds the images that a manifest's paths mean."""

    def __init__(self, manifest_folder: str, workspace: str, allowed: Sequence[str] = ()) -> None:
        self.manifest_folder = manifest_folder
        self.workspace = workspace
        self.allowed = tuple(allowed)

    def read(self, path: str) -> bytes:
        """Read an image, which must lie in its folder when links are followed.

        Raises:
            ImageFault: missing, outside, or not readable.
        """
        folder, inside = self._locate(path)
        return read_image_bytes(_opened(folder), inside, path)

    def _locate(self, path: str) -> tuple[str, str]:
        if path.startswith(WORKSPACE_SCHEME):
            return self.workspace, path.removeprefix(WORKSPACE_SCHEME)
        if not path.startswith(("/", "s3://")):
            return self.manifest_folder, path
        for folder in self.allowed:
            prefix = folder.rstrip("/") + "/"
            if path.startswith(prefix):
                return folder, path.removeprefix(prefix)
        raise ImageFault("outside", f"{path} lies in no folder of render.allowed_folders")


_opened = cache(open_folder)


def image_facts(folders: ImageFolders, paths: Iterable[str]) -> dict[str, ImageFacts | ImageFault]:
    """Hash images by their bytes and read their headers, each path once and many at a time.

    Only what can be told without decoding is looked at: a damaged image may still have facts. A
    fault stands in the place of facts.
    """
    distinct = sorted(set(paths))
    chunks = list(batched(distinct, IMAGES_AT_ONCE))
    found: dict[str, ImageFacts | ImageFault] = {}
    look = partial(_look_at_all, folders)
    with _pool(folders, len(distinct)) as readers, progress("images", len(distinct)) as shown:
        for chunk, facts in zip(chunks, readers.map(look, chunks), strict=True):
            found.update(zip(chunk, facts, strict=True))
            shown.advance(len(chunk))
    return found


def batched(items: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Cut a sequence into tuples of `size`, the last one shorter."""
    for begin in range(0, len(items), size):
        yield tuple(items[begin : begin + size])


def _pool(folders: ImageFolders, count: int) -> Executor:
    """Give processes where hashing keeps cores busy, threads where it waits for a service."""
    if folders.manifest_folder.startswith("s3://"):
        return ThreadPoolExecutor(NUM_S3_READERS)
    if count < MANY_IMAGES:
        return ThreadPoolExecutor(NUM_READERS)
    # A fresh process each: a fork would inherit locks of threads that it does not have.
    return ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("forkserver"))


def _look_at_all(folders: ImageFolders, paths: Sequence[str]) -> list[ImageFacts | ImageFault]:
    return [_look_at(folders, path) for path in paths]


def _look_at(folders: ImageFolders, path: str) -> ImageFacts | ImageFault:
    try:
        data = folders.read(path)
        with _open(data, path) as image:
            width, height = image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) >= FIRST_LYING_ORIENTATION:
                width, height = height, width
    except ImageFault as fault:
        return fault
    except DECODER_FAULTS:  # a damaged EXIF block: decoding will tell
        width, height = image.size
    return ImageFacts(hashlib.sha256(data).hexdigest(), width, height)


def read_image_bytes(folder: Store, path: str, name: str | None = None) -> bytes:
    """Read an image's file, which must lie in the folder when links are followed.

    Args:
        folder: Where it must lie.
        path: Relative to the folder.
        name: What messages call it, if not by its path.

    Raises:
        ImageFault: missing, outside, or not readable.
    """
    name = name or path
    if isinstance(folder, FolderStore) and not _stays_inside(str(folder.root), path):
        raise ImageFault("outside", f"{name} leads out of the manifest's folder; copy it there")
    try:
        return folder.read(path)
    except FileNotFoundError:
        raise ImageFault("missing", f"there is no image {name}; copy it or correct it") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as fault:
        raise ImageFault("unreadable", f"{name} cannot be read: {fault.strerror}") from fault


def _stays_inside(root: str, path: str) -> bool:
    full = os.path.join(root, path)
    parent = _real_folder(os.path.dirname(full))
    target = os.path.realpath(full) if os.path.islink(full) else f"{parent}/"
    return target.startswith(_real_folder(root).rstrip("/") + "/")


# Many images lie in few folders, and following links looks at every folder above.
_real_folder = lru_cache(1024)(os.path.realpath)


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
