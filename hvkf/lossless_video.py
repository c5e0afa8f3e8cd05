"""Packing frames without loss for scene shards: Ut Video, its median prediction, in NUT.

`benchmarks/codecs.py` compares it with others: half the bytes of zstd, in the same time.
"""

import io

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

CODEC, CONTAINER = "utvideo", "nut"
STORED_FORMAT = "gbrp"
OPTIONS = {"pred": "median"}
RATE = 24
"""Without meaning: what a sample's rate is stands in its own column."""


def pack_frames(frames_FHWC: NDArray[np.uint8]) -> bytes:
    """Pack uint8 RGB frames [F, H, W, 3]; equal frames give equal bytes."""
    sink = io.BytesIO()
    with av.open(sink, "w", CONTAINER) as container:
        stream = container.add_stream(CODEC, rate=RATE, options=OPTIONS)
        assert isinstance(stream, VideoStream)
        _, stream.height, stream.width, _ = frames_FHWC.shape
        stream.pix_fmt = STORED_FORMAT
        stream.codec_context.thread_count = 1  # slices, and so bytes, follow the threads
        for frame in frames_FHWC:
            # PyAV would split the planes itself, at half the speed.
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            container.mux(stream.encode(picture.reformat(format=STORED_FORMAT, threads=1)))
        container.mux(stream.encode(None))
    return sink.getvalue()


def unpack_frames(data: bytes) -> NDArray[np.uint8]:
    """Give back the frames [F, H, W, 3] of `pack_frames`, bit for bit."""
    with av.open(io.BytesIO(data), mode="r", format=CONTAINER) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return np.stack([frame.to_ndarray() for frame in container.decode(stream)])
