"""Storing the samples of groups of clips, segment by segment."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from hvkf import buckets, ledger
from hvkf.config import Config
from hvkf.media.errors import MediaFault
from hvkf.progress import Progress, progress
from hvkf.records import Clip, Failure
from hvkf.shards import SegmentWriter
from hvkf.stages.cache import SCENES_ROOT, SceneGroup, SceneItem, SceneSegment
from hvkf.stages.cache_frames import ClipSamples, ClipWork, PackedVideo
from hvkf.stages.committing import Committer
from hvkf.stages.previews import Preview
from hvkf.storage import Store

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


class _GroupWork(NamedTuple):
    """What is missing of a group: its segments, and each clip's samples in them."""

    segments: Sequence[SceneSegment]
    clips: Sequence[ClipWork]


def run_groups(config: Config, store: Store, parts: Sequence[Sequence[SceneGroup]]) -> None:
    """Make the segments of all groups that have no record yet, group after group."""
    groups = [_missing(store, group) for part in parts for group in part]
    clips = [work for group in groups for work in group.clips]
    with (
        progress("cache", len(clips)) as shown,
        Committer(store, SCENES_ROOT) as committer,
        closing(ClipSamples(config, clips)) as samples,
    ):
        for group in groups:
            _run_group(store, group, samples, committer, shown)


def _missing(store: Store, group: SceneGroup) -> _GroupWork:
    ids = [segment.segment_id for segment in group.segments]
    missing = ledger.missing_segments(store, SCENES_ROOT, ids)
    segments = [segment for segment in group.segments if segment.segment_id in missing]
    items: list[list[SceneItem]] = [[] for _ in group.clips]
    for item in (item for segment in segments for item in segment.items):
        items[item.clip].append(item)
    return _GroupWork(segments, [ClipWork(*of) for of in zip(group.clips, items, strict=True)])


def _run_group(
    store: Store,
    group: _GroupWork,
    samples: ClipSamples,
    committer: Committer,
    shown: Progress,
) -> None:
    with closing(_Segments(store, group.segments, committer)) as segments:
        for work in group.clips:
            failed = _store_clip(work, samples, segments)
            shown.advance(note=work.clip.source, failed=failed)


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

    def add(self, clip: Clip, item: SceneItem, video: PackedVideo) -> None:
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


def _store_clip(work: ClipWork, samples: ClipSamples, segments: _Segments) -> int:
    """Add a clip's samples to their segments, or their failures: a sample is whole or absent.

    Returns:
        How many samples could not be made.
    """
    clip, items = work
    unfinished = {item.key: item for item in items}
    try:
        for item, video in samples.of_next_clip():
            del unfinished[item.key]
            segments.add(clip, item, video)
    except MediaFault as fault:
        for item in unfinished.values():
            segments.add_failure(clip, item, fault)
    return len(unfinished)


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
