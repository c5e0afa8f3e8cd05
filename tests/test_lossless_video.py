"""Frames come back from their packing bit for bit, and equal frames are equal bytes."""

import io
from typing import Any

import av
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hvkf.lossless_video import (
    CODEC,
    CONTAINER,
    OPTIONS,
    RATE,
    STORED_FORMAT,
    pack_frames,
    unpack_frames,
)
from hvkf.shapes import render_clip


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(0, 99)
)
def test_any_frames_come_back_bit_for_bit(
    count: int, rows: int, columns: int, spread: int, seed: int
) -> None:
    shape = (count, 16 * rows, 16 * columns, 3)
    limit = (1, 3, 128, 256)[spread]
    frames = np.random.default_rng(seed).integers(0, limit, shape, dtype=np.uint8)
    packed = pack_frames(frames)
    assert np.array_equal(unpack_frames(packed), frames)
    assert pack_frames(frames.copy()) == packed


def test_frames_that_are_not_contiguous_are_packed_as_they_look() -> None:
    frames, _ = render_clip(0, 1, 5)
    turned = frames[:, ::-1, :, :]
    assert np.array_equal(unpack_frames(pack_frames(turned)), turned)


def test_a_clip_takes_less_room_than_its_pixels() -> None:
    frames, _ = render_clip(0, 1, 17)
    assert len(pack_frames(frames)) < 0.6 * frames.nbytes


def test_frames_packed_one_by_one_are_the_bytes_of_a_stream_that_is_encoded_as_a_whole() -> None:
    frames, _ = render_clip(0, 2, 9)
    sink = io.BytesIO()
    with av.open(sink, "w", CONTAINER) as container:
        stream: Any = container.add_stream(CODEC, rate=RATE, options=OPTIONS)
        stream.height, stream.width, stream.pix_fmt = 64, 64, STORED_FORMAT
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            container.mux(stream.encode(picture.reformat(format=STORED_FORMAT, threads=1)))
        container.mux(stream.encode(None))
    assert pack_frames(frames) == sink.getvalue()
