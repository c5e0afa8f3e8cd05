"""Making clips' samples: each source is decoded once for all of them, ahead of what packs them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hvkf import buckets
from hvkf.ahead import ahead
from hvkf.config import Config
from hvkf.lossless_video import FramePacker, join_frames
from hvkf.media.errors import MediaFault, only_this_file
from hvkf.media.timing import resample_indices
from hvkf.records import Clip
from hvkf.resize import resize_to_cover
from hvkf.stages.cache import SceneItem
from hvkf.stages.ingest_sources import UNREADABLE, SourceError, local_file, open_sources
from hvkf.storage import Store, file_sha256
from hvkf.user_files import reason_of
from hvkf.video import decode_frames

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]

FRAMES_AHEAD = 6
"""As many may come while a whole sample is joined, hashed and written."""


class ClipWork(NamedTuple):
    """A clip and the samples that are to be made of it."""

    clip: Clip
    items: Sequence[SceneItem]


class PackedVideo(NamedTuple):
    """A sample's frames, packed, and the first of them [H, W, 3] as it looks."""

    data: bytes
    first: Pixels


class ClipSamples:
    """Makes the samples of clips, clip after clip.

    One thread decodes and another resizes, up to the next clip's first frames, beside packing and
    what is done with the samples. A frame is resized and packed once per size, and only its packed
    bytes are held while a sample that needs it is unfinished.
    """

    def __init__(self, config: Config, work: Iterable[ClipWork]) -> None:
        sources = open_sources(config.ingest)
        self._frames = ahead(_resize_clips(config, sources, work), FRAMES_AHEAD)
        self._packers: dict[Size, FramePacker] = {}

    def of_next_clip(self) -> Iterator[tuple[SceneItem, PackedVideo]]:
        """Yield each sample with its last frame; those of one bucket come in their order.

        Read it to its end, or to its fault, before the next clip's.

        Raises:
            MediaFault: the rest of the clip's samples cannot be made.
        """
        for made in self._frames:
            if isinstance(made, _ClipEnd):
                if made.fault is not None:
                    raise made.fault
                return
            packed = {size: self._pack(size, pixels) for size, pixels in made.pixels.items()}
            for sample in made.samples:
                sample.add(made.frame, made.pixels[sample.size], packed[sample.size])
                if made.frame == sample.last:
                    yield sample.item, sample.take()

    def _pack(self, size: Size, pixels: Pixels) -> bytes:
        if size not in self._packers:
            self._packers[size] = FramePacker(*size)
        return self._packers[size].pack(pixels)

    def close(self) -> None:
        """End the thread."""
        self._frames.close()


class _Growing:
    """A sample whose packed frames are still coming."""

    def __init__(self, item: SceneItem, frames: Sequence[int]) -> None:
        self.item = item
        bucket = buckets.Bucket.parse(item.bucket)
        self.size = (bucket.width, bucket.height)
        self.last = max(frames)
        self._places: dict[int, list[int]] = {}
        for position, frame in enumerate(frames):
            self._places.setdefault(frame, []).append(position)
        self._packed = [b""] * len(frames)
        self._first: Pixels | None = None

    @property
    def wanted(self) -> Iterable[int]:
        """The source frames that it is made of."""
        return self._places

    def add(self, frame: int, pixels: Pixels, packed: bytes) -> None:
        """Put a resized frame in its places."""
        for position in self._places[frame]:
            self._packed[position] = packed
            if position == 0:
                self._first = pixels

    def take(self) -> PackedVideo:
        """Return the whole video and let go of its frames."""
        assert self._first is not None
        video = PackedVideo(join_frames(self._packed, *self.size), self._first)
        self._packed = []
        return video


class _Resized(NamedTuple):
    """A source frame at the sizes that it is needed in, and the samples that need it."""

    frame: int
    pixels: dict[Size, Pixels]
    samples: Sequence[_Growing]


class _ClipEnd(NamedTuple):
    """Behind a clip's frames: all of them came, or a fault ended them."""

    fault: MediaFault | None


def _resize_clips(
    config: Config, sources: Store, work: Iterable[ClipWork]
) -> Iterator[_Resized | _ClipEnd]:
    for clip, items in work:
        fault = None
        try:
            if items:
                with only_this_file(clip.source):
                    yield from _resize_clip(config, sources, clip, items)
        except MediaFault as raised:
            fault = raised
        yield _ClipEnd(fault)


def _resize_clip(
    config: Config, sources: Store, clip: Clip, items: Sequence[SceneItem]
) -> Iterator[_Resized]:
    wanted: dict[int, list[_Growing]] = {}
    for item in items:
        sample = _Growing(item, source_frames(clip, item, config))
        for frame in sample.wanted:
            wanted.setdefault(frame, []).append(sample)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(local_file(sources, clip.source))
            found = file_sha256(file)
        except SourceError as error:
            is_gone = error.code == "missing"
            message = "it is gone since ingest; run `hvkf ingest` again" if is_gone else str(error)
            raise MediaFault(error.code, message) from error
        except OSError as error:  # the disk, while it was hashed
            raise MediaFault(UNREADABLE, f"it cannot be read: {reason_of(error)}") from error
        if found != clip.source_sha256:
            raise MediaFault("changed", "its bytes changed since ingest; run `hvkf ingest` again")
        decoded = opened.enter_context(
            closing(ahead(decode_frames(file, sorted(wanted), clip.reading)))
        )
        for frame, pixels in decoded:
            samples = wanted.pop(frame)
            sizes = {sample.size for sample in samples}
            yield _Resized(frame, {size: resize_to_cover(pixels, *size) for size in sizes}, samples)


def source_frames(clip: Clip, item: SceneItem, config: Config) -> list[int]:
    """Number, in the source video, the frames of a sample."""
    bucket = buckets.Bucket.parse(item.bucket)
    cache = config.cache
    windows = buckets.windows(clip.num_frames, bucket.num_frames, cache.frames, cache.head_frame)
    resampled: Sequence[int] = clip.frames or resample_indices(
        clip.end - clip.start, clip.source_fps, config.ingest.target_fps
    )
    return [clip.start + resampled[frame] for frame in windows[item.window]]
