"""Packing frames without loss for scene shards: Ut Video, its median prediction, in NUT.

`benchmarks/codecs.py` compares it with others: half the bytes of zstd, in the same time.
"""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from numpy.typing import NDArray

CODEC, CONTAINER = "utvideo", "nut"
STORED_FORMAT = "gbrp"
OPTIONS = {"pred": "median"}
RATE = 24
"""Without meaning: what a sample's rate is stands in its own column."""
TIME_BASE = Fraction(1, RATE)


class FramePacker:
    """Packs frames of one size, each by itself: what is packed once serves many videos."""

    def __init__(self, width: int, height: int) -> None:
        codec = av.CodecContext.create(CODEC, "w")
        assert isinstance(codec, VideoCodecContext)
        codec.width, codec.height, codec.pix_fmt = width, height, STORED_FORMAT
        codec.thread_count = 1  # slices, and so bytes, follow the threads
        codec.options = OPTIONS
        codec.time_base = TIME_BASE
        self._codec = codec

    def pack(self, frame_HWC: NDArray[np.uint8]) -> bytes:
        """Pack a frame; equal frames give equal bytes."""
        # PyAV would split the planes itself, at half the speed.
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), "rgb24")
        (packet,) = self._codec.encode(picture.reformat(format=STORED_FORMAT, threads=1))
        return bytes(packet)


def join_frames(packed: Sequence[bytes], width: int, height: int) -> bytes:
    """Make a video of packed frames of that size."""
    sink = io.BytesIO()
    with av.open(sink, "w", CONTAINER) as container:
        stream = container.add_stream(CODEC, rate=RATE, options=OPTIONS)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, STORED_FORMAT
        stream.codec_context.thread_count = 1  # it is written down with the codec's settings
        container.start_encoding()
        for number, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream = stream
            packet.pts = packet.dts = number
            packet.duration = 1
            packet.time_base = TIME_BASE
            packet.is_keyframe = True
            container.mux(packet)
    return sink.getvalue()


def pack_frames(frames_FHWC: NDArray[np.uint8]) -> bytes:
    """Pack uint8 RGB frames [F, H, W, 3]; equal frames give equal bytes."""
    _, height, width, _ = frames_FHWC.shape
    packer = FramePacker(width, height)
    return join_frames([packer.pack(frame) for frame in frames_FHWC], width, height)


def unpack_frames(data: bytes) -> NDArray[np.uint8]:
    """Give back the frames [F, H, W, 3] of `pack_frames`, bit for bit."""
    with av.open(io.BytesIO(data), mode="r", format=CONTAINER) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return np.stack([frame.to_ndarray() for frame in container.decode(stream)])
