"""Writing videos and pictures, as bytes that follow from the pixels and the settings alone."""

import errno
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image

from hvkf.errors import BadInput, DiskFull
from hvkf.media.frames import EXACT

MAX_FPS_DENOMINATOR = 1001
SLOWEST_FPS, FASTEST_FPS = 1, 1000
"""Players show a rate under this as a still, and files cannot name one above."""


def playable_rate(fps: float) -> Fraction:
    """Give the rate at which frames of this rate are written: a time-lapse's becomes 1."""
    return Fraction(min(max(fps, SLOWEST_FPS), FASTEST_FPS)).limit_denominator(MAX_FPS_DENOMINATOR)


def write_mp4(
    path: str | Path,
    frames_FHWC: Iterable[NDArray[np.uint8]],
    *,
    fps: int | Fraction = 24,
    crf: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames as H.264 (yuv420p, BT.709) in an MP4 that can be played while it loads.

    Equal frames and settings give equal bytes with one build of x264: one thread, no dates.

    Args:
        path: where to write; what is there is replaced.
        frames_FHWC: an array or any iterable of uint8 RGB frames of one size with even sides.
        fps: frames per second.
        crf: x264's constant rate factor; 18 is visually lossless.
        metadata: tags of any names, readable again from the container.

    Raises:
        BadInput: there is no frame, or a side is odd.
        DiskFull: there is no room.
    """
    frames = iter(frames_FHWC)
    first = next(frames, None)
    if first is None:
        raise BadInput(f"There are no frames to write to {path}: give at least one.")
    height, width = first.shape[:2]
    if width % 2 or height % 2:
        raise BadInput(f"H.264 needs even sides, not {width}x{height}: cut or pad the frames.")
    with (
        _room_for(path),
        av.open(
            f"file:{path}",
            "w",
            format="mp4",
            options={"fflags": "+bitexact", "movflags": "+faststart+use_metadata_tags"},
        ) as container,
    ):
        container.metadata.update(metadata or {})
        # x264's vectorised macroblock tree reads past small frames: bytes would vary by chance.
        options = {"crf": str(crf), "preset": "medium", "x264-params": "no-mbtree=1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        encoder = stream.codec_context
        encoder.thread_count = 1
        encoder.flags |= Flags.bitexact
        encoder.colorspace = Colorspace.ITU709
        encoder.color_range = ColorRange.MPEG
        encoder.color_primaries = ColorPrimaries.BT709
        encoder.color_trc = ColorTrc.BT709
        for frame_HWC in itertools.chain([first], frames):
            container.mux(stream.encode(_yuv(frame_HWC, width, height)))
        container.mux(stream.encode(None))


def write_png(path: str | Path, frame_HWC: NDArray[np.uint8]) -> None:
    """Write one uint8 RGB frame as a PNG; equal frames give equal bytes. Raises DiskFull."""
    with _room_for(path):
        Image.fromarray(np.ascontiguousarray(frame_HWC)).save(path, format="PNG", compress_level=6)


@contextmanager
def _room_for(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"There is no room to write {path}: free some space.") from fault


def _yuv(frame_HWC: NDArray[np.uint8], width: int, height: int) -> VideoFrame:
    if frame_HWC.shape != (height, width, 3):
        raise ValueError(f"a frame of shape {frame_HWC.shape} in a video of {width}x{height}")
    rgb = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
    return rgb.reformat(
        format="yuv420p",
        interpolation=EXACT,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
