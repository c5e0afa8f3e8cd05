"""Decoding a clip once for all its samples, and storing these segment by segment."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from hvkf import buckets, ledger
from hvkf.config import Config
from hvkf.progress import Progress, progress
from hvkf.records import Clip, Failure
from hvkf.resize import resize_to_cover
from hvkf.shards import SegmentWriter
from hvkf.stages.cache import CHANNELS, SceneGroup, SceneItem, SceneSegment, scenes_root
from hvkf.stages.ingest import source_folder
from hvkf.stages.ingest_scan import local_file
from hvkf.stages.previews import Preview
from hvkf.storage import Store, file_sha256, open_folder
from hvkf.video import MediaFault, decode_frames, resample_indices

Pixels = npt.NDArray[np.uint8]

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
    "video": "ndarray:uint8",
}


def run_groups(config: Config, store: Store, parts: Sequence[Sequence[SceneGroup]]) -> None:
    """Make the segments of all groups that have no record yet, group after group."""
    groups = [group for part in parts for group in part]
    with progress("cache", sum(len(group.clips) for group in groups)) as shown:
        for group in groups:
            _run_group(config, store, group, shown)


def _run_group(config: Config, store: Store, group: SceneGroup, shown: Progress) -> None:
    root = scenes_root(config)
    missing = [
        segment
        for segment in group.segments
        if not store.exists(ledger.segment_path(root, segment.segment_id))
    ]
    with ExitStack() as cleanup:
        writers, previews = {}, {segment.items[0].bucket: Preview() for segment in missing}
        for segment in missing:
            bucket = segment.items[0].bucket
            writer = SegmentWriter(segment.segment_id, bucket, COLUMNS, config.cache.compression)
            cleanup.callback(writer.close)
            writers[bucket] = writer
        for index, clip in enumerate(group.clips):
            items = [item for item in _items(missing) if item.clip == index]
            _store_clip(config, clip, items, writers, previews)
            shown.advance(note=clip.source)
        for writer in writers.values():
            writer.commit(store, root, ledger.attempt_name())
        for segment in missing:
            previews[segment.items[0].bucket].put(store, segment.segment_id)


def _items(segments: Sequence[SceneSegment]) -> Iterator[SceneItem]:
    for segment in segments:
        yield from segment.items


def _store_clip(
    config: Config,
    clip: Clip,
    items: Sequence[SceneItem],
    writers: dict[str, SegmentWriter],
    previews: dict[str, Preview],
) -> None:
    """Add a clip's samples to their segments, or their failures: a sample is whole or absent."""
    if not items:
        return
    sources = open_folder(source_folder(config.ingest))
    try:
        videos = _decode(config, clip, items, sources)
    except (MediaFault, FileNotFoundError) as fault:
        code = fault.code if isinstance(fault, MediaFault) else "missing"
        for item in items:
            writers[item.bucket].add_failure(
                Failure(code=code, message=f"{item.bucket}: {fault}", source=clip.source)
            )
        return
    for item, video in zip(items, videos, strict=True):
        writers[item.bucket].add(item.key, clip.source_sha256, _sample(clip, item, video))
        previews[item.bucket].add(video[0])


def _decode(config: Config, clip: Clip, items: Sequence[SceneItem], sources: Store) -> list[Pixels]:
    """Decode the clip's source once, resizing each wanted frame for every sample that needs it."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    videos: list[Pixels] = []
    for number, item in enumerate(items):
        bucket = buckets.Bucket.parse(item.bucket)
        shape = (bucket.num_frames, bucket.height, bucket.width, CHANNELS)
        videos.append(np.empty(shape, dtype=np.uint8))
        for position, frame in enumerate(source_frames(clip, item, config)):
            wanted.setdefault(frame, []).append((number, position))
    with local_file(sources, clip.source) as file:
        if file_sha256(file) != clip.source_sha256:
            raise MediaFault("changed", "its bytes changed since ingest; run `hvkf ingest` again")
        num_found = 0
        for frame, pixels in decode_frames(file, sorted(wanted)):
            num_found += 1
            for number, position in wanted[frame]:
                height, width = videos[number].shape[1:3]
                videos[number][position] = resize_to_cover(pixels, width, height)
    if num_found != len(wanted):
        raise MediaFault(
            "truncated", f"only {num_found} of {len(wanted)} frames of {clip.source} were there"
        )
    return videos


def source_frames(clip: Clip, item: SceneItem, config: Config) -> list[int]:
    """Number, in the source video, the frames of a sample."""
    bucket = buckets.Bucket.parse(item.bucket)
    cache = config.cache
    windows = buckets.windows(clip.num_frames, bucket.num_frames, cache.frames, cache.head_frame)
    resampled = resample_indices(clip.end - clip.start, clip.source_fps, config.ingest.target_fps)
    return [clip.start + resampled[frame] for frame in windows[item.window]]


def _sample(clip: Clip, item: SceneItem, video: Pixels) -> dict[str, object]:
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
