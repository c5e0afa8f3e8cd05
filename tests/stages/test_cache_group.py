"""A clip's samples go to their segments; those of a broken clip that are whole stay."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hvkf import ledger
from hvkf.ledger_paths import segment_path
from hvkf.media.errors import MediaFault
from hvkf.records import Reading
from hvkf.stages import cache, cache_frames, cache_group
from hvkf.stages.cache import SceneSegment
from hvkf.stages.cache_frames import ClipSamples, ClipWork
from hvkf.stages.committing import Committer
from hvkf.storage import FolderStore
from hvkf.video import decode_frames
from tests.stages.one_clip import OneClip, ingest_one_clip


@pytest.fixture
def prepared(tmp_path: Path) -> OneClip:
    return ingest_one_clip(tmp_path)


def test_samples_before_a_damaged_frame_stay_whole(
    prepared: OneClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clip, items = prepared

    def broken(file: Path, indices: list[int], reading: Reading) -> Any:
        for frame, pixels in decode_frames(file, indices, reading):
            if frame == 12:
                raise MediaFault("corrupt", "damaged at frame 12")
            yield frame, pixels

    monkeypatch.setattr(cache_frames, "decode_frames", broken)
    store = FolderStore(Path(config.workspace))
    segments = [
        SceneSegment(
            segment_id=bucket, items=tuple(item for item in items if item.bucket == bucket)
        )
        for bucket in sorted({item.bucket for item in items})
    ]
    committer = Committer(store, cache.SCENES_ROOT)
    work = ClipWork(clip, items)
    with (
        committer,
        closing(cache_group._Segments(store, segments, committer)) as opened,
        closing(ClipSamples(config, [work])) as samples,
    ):
        num_failed = cache_group._store_clip(work, samples, opened)
    records = [ledger.read_segment(store, cache.SCENES_ROOT, of.segment_id) for of in segments]
    early = {item.key for item in items if max(cache_frames.source_frames(clip, item, config)) < 12}
    assert {item.key for record in records for item in record.items} == early
    codes = [failure.code for record in records for failure in record.failures]
    assert codes == ["corrupt"] * (len(items) - len(early))
    assert num_failed == len(codes)
    assert early


def test_a_segment_is_committed_with_its_last_sample_while_others_are_made(
    prepared: OneClip,
) -> None:
    config, clip, items = prepared
    store = FolderStore(Path(config.workspace))
    by_bucket = {item.bucket: item for item in items}
    short, long = (by_bucket[bucket] for bucket in sorted(by_bucket)[:2])
    segments = [SceneSegment(segment_id=item.bucket, items=(item,)) for item in (short, long)]
    committer = Committer(store, cache.SCENES_ROOT)
    opened = cache_group._Segments(store, segments, committer)
    with committer, closing(ClipSamples(config, [ClipWork(clip, [short])])) as samples:
        opened.add(clip, *next(samples.of_next_clip()))
    assert store.exists(segment_path(cache.SCENES_ROOT, short.bucket))
    scratch = opened._open[long.bucket].writer._folder
    assert scratch.exists()
    opened.close()
    assert not scratch.exists()
    assert not store.exists(segment_path(cache.SCENES_ROOT, long.bucket))
