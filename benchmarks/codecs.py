"""How to store scenes without loss: the bytes and the time of candidates, on real clips.

A candidate takes a sample's frames and gives them back bit for bit; the benchmark checks that. The
CPU's seconds are of one thread. Run with PYTHONPATH=. and OMP_NUM_THREADS=1 set.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import av
import numpy as np
import zstd  # type: ignore[import-untyped]  # streaming's own
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from hvkf.demo import CLIPS, clips_folder
from hvkf.lossless_video import pack_frames, unpack_frames
from hvkf.resize import resize_to_cover
from hvkf.video import decode_frames

Frames = NDArray[np.uint8]
NUM_FRAMES = 33
BYTES_PER_MB = 1e6


class Codec(NamedTuple):
    """Frames [F, H, W, 3] to bytes and back."""

    encode: Callable[[Frames], bytes]
    decode: Callable[[bytes, tuple[int, ...]], Frames]


def main() -> None:
    """Measure every candidate on every clip, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=352)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is taken")
    parser.add_argument("--results", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    clips = dict(read_clips(options.width, options.height))
    figures = [
        {"codec": name, "clip": clip, **measure(codec, frames, options.repeats)}
        for name, codec in CODECS.items()
        for clip, frames in clips.items()
    ]
    show(figures, list(clips))
    if options.results is not None:
        options.results.write_text(json.dumps(figures, indent=2) + "\n")


def read_clips(width: int, height: int) -> Iterator[tuple[str, Frames]]:
    """Decode the first frames of the demo's real clips, in the size of a bucket."""
    for name in CLIPS:
        frames = decode_frames(clips_folder() / name, range(NUM_FRAMES))
        pixels = [resize_to_cover(frame, width, height) for _, frame in frames]
        yield Path(name).stem, np.stack(pixels)


def measure(codec: Codec, frames: Frames, repeats: int) -> dict[str, float]:
    """Encode and decode several times; a codec that changes a pixel is refused."""
    packed = codec.encode(frames)
    if not np.array_equal(codec.decode(packed, frames.shape), frames):
        raise SystemExit("a candidate does not give the frames back bit for bit")
    megabytes = frames.nbytes / BYTES_PER_MB
    return {
        "share": round(len(packed) / frames.nbytes, 4),
        "encode_mb_per_s": round(megabytes / _cpu_s(lambda: codec.encode(frames), repeats), 1),
        "decode_mb_per_s": round(
            megabytes / _cpu_s(lambda: codec.decode(packed, frames.shape), repeats), 1
        ),
    }


def _cpu_s(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begun_s = time.process_time()
        work()
        seconds.append(time.process_time() - begun_s)
    return median(seconds)


def show(figures: list[dict[str, Any]], clips: list[str]) -> None:
    """Print a row for each candidate: its share of the raw bytes by clip, and its mean speeds."""
    table = Table("codec", *clips, "encode MB/s", "decode MB/s", title="share of the raw bytes")
    for name in CODECS:
        rows = [row for row in figures if row["codec"] == name]
        speeds = [
            f"{len(rows) / sum(1 / row[key] for row in rows):.0f}"
            for key in ("encode_mb_per_s", "decode_mb_per_s")
        ]
        table.add_row(name, *(f"{row['share']:.3f}" for row in rows), *speeds)
    Console().print(table)


def _raw(data: bytes, shape: tuple[int, ...]) -> Frames:
    return np.frombuffer(data, np.uint8).reshape(shape)


def _zstd(level: int) -> Codec:
    def decode(data: bytes, shape: tuple[int, ...]) -> Frames:
        return _raw(zstd.decompress(data), shape)

    return Codec(lambda frames: zstd.compress(frames.tobytes(), level, 1), decode)


def _zstd_of_steps(level: int) -> Codec:
    """Each frame as its difference from the one before, modulo 256."""

    def encode(frames: Frames) -> bytes:
        steps = frames.copy()
        steps[1:] -= frames[:-1]
        return bytes(zstd.compress(steps.tobytes(), level, 1))

    def decode(data: bytes, shape: tuple[int, ...]) -> Frames:
        return np.cumsum(_raw(zstd.decompress(data), shape), axis=0, dtype=np.uint8)

    return Codec(encode, decode)


def _png(level: int) -> Codec:
    def encode(frames: Frames) -> bytes:
        packed = []
        for frame in frames:
            sink = io.BytesIO()
            Image.fromarray(frame).save(sink, "PNG", compress_level=level)
            packed.append(len(sink.getvalue()).to_bytes(4, "little") + sink.getvalue())
        return b"".join(packed)

    def decode(data: bytes, shape: tuple[int, ...]) -> Frames:
        frames, at = [], 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            with Image.open(io.BytesIO(data[at + 4 : at + 4 + size])) as image:
                frames.append(np.asarray(image))
            at += 4 + size
        return np.stack(frames)

    return Codec(encode, decode)


def _video(name: str, pixel_format: str, **options: str) -> Codec:
    def encode(frames: Frames) -> bytes:
        sink = io.BytesIO()
        with av.open(sink, "w", "nut") as container:
            stream = container.add_stream(name, rate=24, options=options)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height = frames.shape[2], frames.shape[1]
            stream.pix_fmt = pixel_format
            stream.codec_context.thread_count = 1
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, "rgb24")
                container.mux(stream.encode(picture.reformat(format=pixel_format)))
            container.mux(stream.encode(None))
        return sink.getvalue()

    def decode(data: bytes, shape: tuple[int, ...]) -> Frames:
        with av.open(io.BytesIO(data), mode="r", format="nut") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            return np.stack(frames).astype(np.uint8, copy=False)

    return Codec(encode, decode)


CODECS = {
    "raw": Codec(lambda frames: frames.tobytes(), _raw),
    "zstd 1": _zstd(1),
    "zstd 3": _zstd(3),
    "zstd 9": _zstd(9),
    "steps, zstd 3": _zstd_of_steps(3),
    "PNG 1": _png(1),
    "PNG 6": _png(6),
    "FFV1": _video("ffv1", "bgr0", level="3", slicecrc="1"),
    "Ut Video, left": _video("utvideo", "gbrp"),
    "Ut Video, median": Codec(pack_frames, lambda data, _: unpack_frames(data)),
    "x264rgb ultrafast": _video("libx264rgb", "rgb24", qp="0", preset="ultrafast"),
    "x264rgb medium": _video("libx264rgb", "rgb24", qp="0", preset="medium"),
}


if __name__ == "__main__":
    main()
