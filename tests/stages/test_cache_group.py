"""Making a clip's samples: decoded once, resized once per size, held no longer than needed."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvkf import catalog, ledger
from hvkf.config import Config
from hvkf.lossless_video import pack_frames, unpack_frames
from hvkf.resize import resize_to_cover
from hvkf.stages import cache, cache_group, ingest
from hvkf.stages.cache import SceneItem, SceneSegment
from hvkf.stages.committing import Committer
from hvkf.storage import FolderStore, open_folder
from hvkf.video import MediaFault, decode_frames
from tests.workspaces import small_config, write_clip, write_table


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Config, Any, list[SceneItem]]:
    """One clip of 30 frames in windows of three buckets, two of them of one size."""
    write_clip(tmp_path / "data" / "videos" / "a.mp4", 1, num_frames=30)
    table = write_table(tmp_path / "data", [("a", "videos/a.mp4")])
    buckets = ["32x32x5", "32x32x9", "48x32x9"]
    config = small_config(
        tmp_path,
        table,
        cache={"bucket_reso": buckets, "frames": "windows"},
        ingest={"metadata": str(table), "min_holdout": 0},
    )
    store = FolderStore(Path(config.workspace))
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    ingest.commit(plan, store)
    clips = catalog.read_clips(store, catalog.newest_catalog(store, "default").catalog)
    return config, clips[0], cache.wanted_items(clips, config.cache).items


def decoded(config: Config, clip: Any, items: list[SceneItem]) -> list[tuple[SceneItem, Any]]:
    folder = Path(config.ingest.metadata).parent
    return list(cache_group._decode(config, clip, items, open_folder(str(folder))))


def test_samples_equal_frames_resized_one_by_one_and_come_in_order_within_a_bucket(
    prepared: tuple[Config, Any, list[SceneItem]],
) -> None:
    config, clip, items = prepared
    found = decoded(config, clip, items)
    assert {item.key for item, _ in found} == {item.key for item in items}
    file = Path(config.ingest.metadata).parent / clip.source
    whole = dict(decode_frames(file, range(clip.num_frames)))
    for item, packed in found:
        video = unpack_frames(packed.data)
        assert np.array_equal(packed.first, video[0])
        assert packed.data == pack_frames(video)
        height, width = video.shape[1:3]
        frames = cache_group.source_frames(clip, item, config)
        expected = [resize_to_cover(whole[frame], width, height) for frame in frames]
        assert np.array_equal(video, np.stack(expected))
    for bucket in {item.bucket for item in items}:
        windows = [item.window for item, _ in found if item.bucket == bucket]
        assert windows == sorted(windows)


def test_a_frame_is_resized_once_per_size(
    prepared: tuple[Config, Any, list[SceneItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clip, items = prepared
    sizes = []

    def count(pixels: Any, width: int, height: int) -> Any:
        sizes.append((width, height))
        return resize_to_cover(pixels, width, height)

    monkeypatch.setattr(cache_group, "resize_to_cover", count)
    decoded(config, clip, items)
    wanted = {
        (frame, item.bucket.rpartition("x")[0])
        for item in items
        for frame in cache_group.source_frames(clip, item, config)
    }
    assert len(sizes) == len(wanted)


def test_samples_before_a_damaged_frame_stay_whole(
    prepared: tuple[Config, Any, list[SceneItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clip, items = prepared

    def broken(file: Path, indices: list[int]) -> Any:
        for frame, pixels in decode_frames(file, indices):
            if frame == 12:
                raise MediaFault("corrupt", "damaged at frame 12")
            yield frame, pixels

    monkeypatch.setattr(cache_group, "decode_frames", broken)
    store = FolderStore(Path(config.workspace))
    segments = [
        SceneSegment(
            segment_id=bucket, items=tuple(item for item in items if item.bucket == bucket)
        )
        for bucket in sorted({item.bucket for item in items})
    ]
    committer = Committer(store, cache.SCENES_ROOT)
    with committer, closing(cache_group._Segments(store, segments, committer)) as opened:
        num_failed = cache_group._store_clip(config, clip, items, opened)
    records = [ledger.read_segment(store, cache.SCENES_ROOT, of.segment_id) for of in segments]
    early = {item.key for item in items if max(cache_group.source_frames(clip, item, config)) < 12}
    assert {item.key for record in records for item in record.items} == early
    codes = [failure.code for record in records for failure in record.failures]
    assert codes == ["corrupt"] * (len(items) - len(early))
    assert num_failed == len(codes)
    assert early


def test_a_segment_is_committed_with_its_last_sample_while_others_are_made(
    prepared: tuple[Config, Any, list[SceneItem]],
) -> None:
    config, clip, items = prepared
    store = FolderStore(Path(config.workspace))
    by_bucket = {item.bucket: item for item in items}
    short, long = (by_bucket[bucket] for bucket in sorted(by_bucket)[:2])
    segments = [SceneSegment(segment_id=item.bucket, items=(item,)) for item in (short, long)]
    committer = Committer(store, cache.SCENES_ROOT)
    opened = cache_group._Segments(store, segments, committer)
    made = {item.key: video for item, video in decoded(config, clip, [short, long])}
    with committer:
        opened.add(clip, short, made[short.key])
    assert store.exists(ledger.segment_path(cache.SCENES_ROOT, short.bucket))
    scratch = opened._open[long.bucket].writer._folder
    assert scratch.exists()
    opened.close()
    assert not scratch.exists()
    assert not store.exists(ledger.segment_path(cache.SCENES_ROOT, long.bucket))
