"""Small pictures of what lies in a segment, made by the worker that stores it.

They are for people alone: no record names them, and nothing depends on their bytes.
"""

import io
import logging

import numpy as np
import numpy.typing as npt
from PIL import Image

from hvkf.errors import CorruptData
from hvkf.storage import Store
from hvkf.stored import explain_damage, read_object

logger = logging.getLogger(__name__)

FOLDER = "previews"
MAX_FRAMES = 8
HEIGHT = 96
JPEG_QUALITY = 80


def preview_path(segment_id: str) -> str:
    """Where a segment's preview lies."""
    return f"{FOLDER}/{segment_id}.jpg"


class Preview:
    """The first frames of a segment's first samples, side by side."""

    def __init__(self) -> None:
        self._frames: list[Image.Image] = []

    def add(self, frame_HWC: npt.NDArray[np.uint8]) -> None:
        """Take a frame, if there is room for one more."""
        if len(self._frames) < MAX_FRAMES:
            frame = Image.fromarray(frame_HWC)
            width = max(1, round(frame.width * HEIGHT / frame.height))
            self._frames.append(frame.resize((width, HEIGHT), Image.Resampling.BILINEAR))

    def put(self, store: Store, segment_id: str) -> None:
        """Store the preview; a segment whose samples all failed has none."""
        if self._frames:
            store.put(preview_path(segment_id), to_jpeg(side_by_side(self._frames)))


def read_picture(store: Store, path: str) -> Image.Image:
    """Read a stored picture that a record names.

    Raises:
        CorruptData: it is gone, or is no picture.
    """
    data = read_object(store, path)
    with explain_damage(store, path, OSError, SyntaxError):
        return Image.open(io.BytesIO(data)).convert("RGB")


def read_preview(store: Store, segment_id: str) -> Image.Image | None:
    """Read a segment's preview; None if there is none, with a warning if it is damaged."""
    path = preview_path(segment_id)
    if not store.exists(path):
        return None
    try:
        return read_picture(store, path)
    except CorruptData as fault:
        logger.warning("%s It is left out.", fault)
        return None


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Join pictures of one height in a row."""
    row = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return row


def to_jpeg(picture: Image.Image) -> bytes:
    """Encode a picture for a page."""
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()
