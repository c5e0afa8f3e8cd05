"""Decoding a clip once for all its samples, and storing these segment by segment."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hvkf import buckets, ledger
from hvkf.ahead import ahead
from hvkf.config import Config
from hvkf.lossless_video import FramePacker, join_frames
from hvkf.progress import Progress, progress
from hvkf.records import Clip, Failure
from hvkf.resize import resize_to_cover
from hvkf.shards import SegmentWriter
from hvkf.stages.cache import SCENES_ROOT, SceneGroup, SceneItem, SceneSegment
from hvkf.stages.committing import Committer
from hvkf.stages.ingest import source_folder
from hvkf.stages.ingest_scan import local_file
from hvkf.stages.previews import Preview
from hvkf.storage import Store, file_sha256, open_folder
from hvkf.video import MediaFault, decode_frames, resample_indices

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]

COLUMNS = {
    "item_key": "str",
    "clip_id": "str",
    "source": "str",
    "caption": "str",
    "start": "int32",
    "end": "int32",
    "window": "int32",
    "fps": "float64",
    "num_frames": "int32",
    "bucket_width": "int32",
    "bucket_height": "int32",
    "original_width": "int32",
    "original_height": "int32",
    "video": "bytes",
}


def run_groups(config: Config, store: Store, parts: Sequence[Sequence[SceneGroup]]) -> None:
    """Make the segments of all groups that have no record yet, group after group."""
    groups = [group for part in parts for group in part]
    with (
        progress("cache", sum(len(group.clips) for group in groups)) as shown,
        Committer(store, SCENES_ROOT) as committer,
    ):
        for group in groups:
            _run_group(config, store, group, committer, shown)


def _run_group(
    config: Config, store: Store, group: SceneGroup, committer: Committer, shown: Progress
) -> None:
    missing = [
        segment
        for segment in group.segments
        if not store.exists(ledger.segment_path(SCENES_ROOT, segment.segment_id))
    ]
    with closing(_Segments(store, missing, committer)) as segments:
        for index, clip in enumerate(group.clips):
            items = [item for segment in missing for item in segment.items if item.clip == index]
            failed = _store_clip(config, clip, items, segments)
            shown.advance(note=clip.source, failed=failed)


class _Segments:
    """A group's segments, by bucket; each is handed to the committer with its last sample."""

    def __init__(
        self, store: Store, segments: Iterable[SceneSegment], committer: Committer
    ) -> None:
        self._store = store
        self._committer = committer
        self._open: dict[str, _OpenSegment] = {}
        for segment in segments:
            self._open[segment.items[0].bucket] = _OpenSegment(segment)

    def add(self, clip: Clip, item: SceneItem, video: "PackedVideo") -> None:
        """Append a sample."""
        segment = self._open[item.bucket]
        sample = _sample(clip, item, video.data)
        segment.writer.add(item.key, clip.source_sha256, sample)
        segment.preview.add(video.first)
        self._count(item)

    def add_failure(self, clip: Clip, item: SceneItem, fault: MediaFault) -> None:
        """Record that a sample could not be made."""
        message = f"{item.bucket}: {fault}"
        failure = Failure(code=fault.code, message=message, source=clip.source)
        self._open[item.bucket].writer.add_failure(failure)
        self._count(item)

    def _count(self, item: SceneItem) -> None:
        segment = self._open[item.bucket]
        segment.num_missing -= 1
        if not segment.num_missing:
            del self._open[item.bucket]
            put_preview = partial(segment.preview.put, self._store, segment.writer.segment_id)
            self._committer.commit(segment.writer, put_preview)

    def close(self) -> None:
        """Drop the scratch files of segments that are not whole."""
        for segment in self._open.values():
            segment.writer.close()


class _OpenSegment:
    """A segment whose samples are still coming."""

    def __init__(self, segment: SceneSegment) -> None:
        self.writer = SegmentWriter(segment.segment_id, segment.items[0].bucket, COLUMNS)
        self.preview = Preview()
        self.num_missing = len(segment.items)


def _store_clip(config: Config, clip: Clip, items: Sequence[SceneItem], segments: _Segments) -> int:
    """Add a clip's samples to their segments, or their failures: a sample is whole or absent.

    Returns:
        How many samples could not be made.
    """
    if not items:
        return 0
    sources = open_folder(source_folder(config.ingest))
    unfinished = {item.key: item for item in items}
    try:
        with closing(_decode(config, clip, items, sources)) as made:
            for item, video in made:
                del unfinished[item.key]
                segments.add(clip, item, video)
    except MediaFault as fault:
        for item in unfinished.values():
            segments.add_failure(clip, item, fault)
    return len(unfinished)


class PackedVideo(NamedTuple):
    """A sample's frames, packed, and the first of them [H, W, 3] as it looks."""

    data: bytes
    first: Pixels


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


def _decode(
    config: Config, clip: Clip, items: Sequence[SceneItem], sources: Store
) -> Generator[tuple[SceneItem, PackedVideo], None, None]:
    """Decode the clip's source once and yield each sample with its last frame.

    A frame is resized and packed once per size, and only its packed bytes are held while a sample
    that needs it is unfinished. A thread decodes and resizes, beside packing, hashing and writing.
    Samples of one bucket come in their order: their windows follow each other.
    """
    wanted: dict[int, list[_Growing]] = {}
    for item in items:
        sample = _Growing(item, source_frames(clip, item, config))
        for frame in sample.wanted:
            wanted.setdefault(frame, []).append(sample)
    sizes = {frame: {sample.size for sample in of} for frame, of in wanted.items()}
    packers = {size: FramePacker(*size) for of in sizes.values() for size in of}
    with closing(ahead(_resize(clip, sizes, sources))) as resized:
        for frame, by_size in resized:
            packed = {size: packers[size].pack(pixels) for size, pixels in by_size.items()}
            for sample in wanted.pop(frame):
                sample.add(frame, by_size[sample.size], packed[sample.size])
                if frame == sample.last:
                    yield sample.item, sample.take()


def _resize(
    clip: Clip, sizes: Mapping[int, Iterable[Size]], sources: Store
) -> Iterator[tuple[int, dict[Size, Pixels]]]:
    """Yield each wanted frame of the clip's source with its pixels at the sizes that it needs."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context(local_file(sources, clip.source))
            found = file_sha256(file)
        except FileNotFoundError:
            raise MediaFault(
                "missing", "it is gone since ingest; run `hvkf ingest` again"
            ) from None
        if found != clip.source_sha256:
            raise MediaFault("changed", "its bytes changed since ingest; run `hvkf ingest` again")
        for frame, pixels in decode_frames(file, sorted(sizes)):
            yield frame, {size: resize_to_cover(pixels, *size) for size in sizes[frame]}


def source_frames(clip: Clip, item: SceneItem, config: Config) -> list[int]:
    """Number, in the source video, the frames of a sample."""
    bucket = buckets.Bucket.parse(item.bucket)
    cache = config.cache
    windows = buckets.windows(clip.num_frames, bucket.num_frames, cache.frames, cache.head_frame)
    resampled = resample_indices(clip.end - clip.start, clip.source_fps, config.ingest.target_fps)
    return [clip.start + resampled[frame] for frame in windows[item.window]]


def _sample(clip: Clip, item: SceneItem, video: bytes) -> dict[str, object]:
    bucket = buckets.Bucket.parse(item.bucket)
    return {
        "item_key": item.key,
        "clip_id": clip.clip_id,
        "source": clip.source,
        "caption": clip.caption,
        "start": clip.start,
        "end": clip.end,
        "window": item.window,
        "fps": clip.fps,
        "num_frames": bucket.num_frames,
        "bucket_width": bucket.width,
        "bucket_height": bucket.height,
        "original_width": clip.width,
        "original_height": clip.height,
        "video": video,
    }
