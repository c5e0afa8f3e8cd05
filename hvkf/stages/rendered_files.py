"""Storing what was rendered: written once, so that a record never names bytes that changed."""

import hashlib
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save

from hvkf.errors import AlreadyExists
from hvkf.media.writing import write_mp4, write_png
from hvkf.records import FileEntry
from hvkf.storage import Store, explain_full_disk, object_sha256

JPEG_QUALITY = 90

Frames = npt.NDArray[np.uint8]


def put_bytes(store: Store, prefix: str, name: str, data: bytes) -> FileEntry:
    """Store an object unless it is there, and say what is there now.

    What a killed attempt left is kept, even where another machine made it and its last bits differ:
    someone may be reading it.
    """
    path = f"{prefix}/{name}"
    try:
        store.put_new(path, data)
    except AlreadyExists:
        size = store.stat(path).size
        return FileEntry(name=name, sha256=object_sha256(store, path), size=size)
    return FileEntry(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def put_video(
    store: Store,
    prefix: str,
    name: str,
    frames_FHWC: Frames,
    *,
    fps: int | Fraction,
    crf: int,
    metadata: Mapping[str, str] | None = None,
) -> FileEntry:
    """Store frames as an mp4."""
    with tempfile.TemporaryDirectory(prefix="hvkf-video-") as folder:
        file = Path(folder) / name
        write_mp4(file, frames_FHWC, fps=fps, crf=crf, metadata=metadata)
        return put_bytes(store, prefix, name, file.read_bytes())


def put_frame(store: Store, prefix: str, name: str, frame_HWC: Frames) -> FileEntry:
    """Store a frame as PNG, or as JPEG for looking at, by the name's suffix."""
    with tempfile.TemporaryDirectory(prefix="hvkf-frame-") as folder:
        file = Path(folder) / Path(name).name
        with explain_full_disk(Path(folder)):
            if file.suffix == ".png":
                write_png(file, frame_HWC)
            else:
                Image.fromarray(frame_HWC).save(file, format="JPEG", quality=JPEG_QUALITY)
        return put_bytes(store, prefix, name, file.read_bytes())


def put_tensor(store: Store, prefix: str, name: str, tensor: torch.Tensor) -> FileEntry:
    """Store a tensor as safetensors, under the name `latents`."""
    return put_bytes(store, prefix, name, save({"latents": tensor.contiguous().cpu()}))
