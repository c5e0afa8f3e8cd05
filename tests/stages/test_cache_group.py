"""Making a clip's samples: decoded once, resized once per size, held no longer than needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvkf import catalog
from hvkf.config import Config
from hvkf.lossless_video import pack_frames, unpack_frames
from hvkf.resize import resize_to_cover
from hvkf.stages import cache, cache_group, ingest
from hvkf.stages.cache import SceneItem
from hvkf.stages.previews import Preview
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
    stored, failed = [], []

    class Writer:
        def add(self, key: str, source: str, sample: Any) -> None:
            stored.append((key, len(unpack_frames(sample["video"]))))

        def add_failure(self, failure: Any) -> None:
            failed.append(failure.code)

    writers: Any = {item.bucket: Writer() for item in items}
    previews = {item.bucket: Preview() for item in items}
    cache_group._store_clip(config, clip, items, writers, previews)
    early = {item.key for item in items if max(cache_group.source_frames(clip, item, config)) < 12}
    assert {key for key, _ in stored} == early
    assert failed == ["corrupt"] * (len(items) - len(early))
    assert early
