"""Keyframe images of a manifest: where they lie, and their identity by content."""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from typing import NamedTuple

from hvkf.errors import BadInput
from hvkf.keyframe_images import MAX_FILE_BYTES, ImageFault, Look, look_at, shown_name
from hvkf.keyframe_images import decode_image as decode_image  # who looks for it here finds it
from hvkf.manifest import split_location
from hvkf.model_source import WORKSPACE_SCHEME
from hvkf.progress import progress
from hvkf.settings.rendering import RenderConfig
from hvkf.storage import LeadsOutside, Store, open_folder, safe_path
from hvkf.unicode_names import name_there
from hvkf.user_files import reason_of

NUM_READERS = 8
NUM_S3_READERS = 32
IMAGES_AT_ONCE = 256
MANY_IMAGES = 2000


class ImageFacts(NamedTuple):
    """What is known of an image without decoding it: its bytes' hash, and its header."""

    sha256: str
    look: Look


class ImageFolders:
    """Finds the images that a manifest's paths mean."""

    def __init__(
        self,
        manifest_folder: str,
        workspace: str,
        allowed: Sequence[str] = (),
        *,
        follow_links: bool = False,
    ) -> None:
        self.follow_links = follow_links
        self.manifest_folder = manifest_folder
        self.workspace = workspace
        self.allowed = tuple(allowed)

    def read(self, path: str) -> bytes:
        """Read an image, which must lie in its folder.

        Raises:
            ImageFault: missing, outside, or not readable.
        """
        folder, inside = self._locate(path)
        return read_image_bytes(_opened(folder, confined=not self.follow_links), inside, path)

    def _locate(self, path: str) -> tuple[str, str]:
        if path.startswith(WORKSPACE_SCHEME):
            return self.workspace, path.removeprefix(WORKSPACE_SCHEME)
        if not path.startswith(("/", "s3://")):
            return self.manifest_folder, path
        for folder in self.allowed:
            prefix = folder.rstrip("/") + "/"
            if path.startswith(prefix):
                return folder, path.removeprefix(prefix)
        name = shown_name(path)
        raise ImageFault("outside", f"{name} lies in no folder of render.allowed_folders")


_opened = cache(open_folder)


def folders_of(render: RenderConfig, store: Store) -> ImageFolders:
    """Give the folders that the settings let a manifest's images lie in."""
    assert render.manifest is not None
    return ImageFolders(
        split_location(render.manifest).folder,
        store.url,
        render.allowed_folders,
        follow_links=render.follow_links,
    )


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
        return ImageFacts(hashlib.sha256(data).hexdigest(), look_at(data, path))
    except ImageFault as fault:
        return fault


def read_image_bytes(folder: Store, path: str, name: str | None = None) -> bytes:
    """Read an image's file.

    Args:
        folder: Where it lies; a confined one refuses links that lead out of it.
        path: Relative to the folder.
        name: What messages call it, if not by its path.

    Raises:
        ImageFault: missing, outside, of more than 256 MB, or not readable for whatever reason the
            system gives.
    """
    name = shown_name(name or path)
    try:
        safe_path(path)
    except BadInput:
        raise ImageFault("outside", f"{name} names no file below its folder; correct it") from None
    try:
        return folder.read(name_there(folder, path), MAX_FILE_BYTES)
    except LeadsOutside:
        raise ImageFault(
            "outside",
            f"{name} is a link that leads out of its folder; copy the image there, or set "
            "render.follow_links",
        ) from None
    except FileNotFoundError:
        raise ImageFault("missing", f"there is no image {name}; copy it or correct it") from None
    except (OSError, ValueError) as error:
        code = "too-large" if getattr(error, "errno", None) == errno.EFBIG else "unreadable"
        raise ImageFault(code, f"{name} cannot be read: {reason_of(error)}; replace it") from error
