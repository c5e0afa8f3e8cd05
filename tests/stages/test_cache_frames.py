"""Making a clip's samples: decoded once, resized once per size, held no longer than needed."""

from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from hvkf.config import Config
from hvkf.lossless_video import pack_frames, unpack_frames
from hvkf.media.errors import MediaFault
from hvkf.records import Reading
from hvkf.resize import resize_to_cover
from hvkf.stages import cache_frames
from hvkf.stages.cache import SceneItem
from hvkf.stages.cache_frames import ClipSamples, ClipWork, PackedVideo
from hvkf.video import decode_frames
from tests.stages.one_clip import OneClip, ingest_one_clip

TIMEOUT_S = 30


@pytest.fixture
def prepared(tmp_path: Path) -> OneClip:
    return ingest_one_clip(tmp_path)


def made_of_clip(
    config: Config, clip: Any, items: list[SceneItem]
) -> list[tuple[SceneItem, PackedVideo]]:
    with closing(ClipSamples(config, [ClipWork(clip, items)])) as samples:
        return list(samples.of_next_clip())


def test_samples_equal_frames_resized_one_by_one_and_come_in_order_within_a_bucket(
    prepared: OneClip,
) -> None:
    config, clip, items = prepared
    found = made_of_clip(config, clip, items)
    assert {item.key for item, _ in found} == {item.key for item in items}
    file = Path(config.ingest.metadata).parent / clip.source
    whole = dict(decode_frames(file, range(clip.num_frames)))
    for item, packed in found:
        video = unpack_frames(packed.data)
        assert np.array_equal(packed.first, video[0])
        assert packed.data == pack_frames(video)
        height, width = video.shape[1:3]
        frames = cache_frames.source_frames(clip, item, config)
        expected = [resize_to_cover(whole[frame], width, height) for frame in frames]
        assert np.array_equal(video, np.stack(expected))
    for bucket in {item.bucket for item in items}:
        windows = [item.window for item, _ in found if item.bucket == bucket]
        assert windows == sorted(windows)


def test_a_frame_is_resized_once_per_size(
    prepared: OneClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clip, items = prepared
    sizes = []

    def count(pixels: Any, width: int, height: int) -> Any:
        sizes.append((width, height))
        return resize_to_cover(pixels, width, height)

    monkeypatch.setattr(cache_frames, "resize_to_cover", count)
    made_of_clip(config, clip, items)
    wanted = {
        (frame, item.bucket.rpartition("x")[0])
        for item in items
        for frame in cache_frames.source_frames(clip, item, config)
    }
    assert len(sizes) == len(wanted)


def test_the_next_clip_is_begun_while_the_samples_of_one_are_not_all_taken(
    prepared: OneClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clip, items = prepared
    begun: list[Event] = [Event(), Event()]
    waiting = iter(begun)

    def decode(file: Path, indices: list[int], reading: Reading) -> Any:
        next(waiting).set()
        return decode_frames(file, indices, reading)

    monkeypatch.setattr(cache_frames, "decode_frames", decode)
    work = [ClipWork(clip, items[:1]), ClipWork(clip, items)]
    with closing(ClipSamples(config, work)) as samples:
        first = samples.of_next_clip()
        next(first)
        assert begun[1].wait(TIMEOUT_S)
        assert list(first) == []
        assert len(list(samples.of_next_clip())) == len(items)


def test_a_fault_of_one_clip_ends_its_samples_and_not_those_of_the_next(
    prepared: OneClip,
) -> None:
    config, clip, items = prepared
    changed = clip.model_copy(update={"source_sha256": "0" * 64})
    gone = clip.model_copy(update={"source": "videos/gone.mp4"})
    work = [ClipWork(of, items) for of in (changed, gone)]
    work += [ClipWork(clip, []), ClipWork(clip, items)]
    with closing(ClipSamples(config, work)) as samples:
        with pytest.raises(MediaFault, match="changed since ingest"):
            list(samples.of_next_clip())
        with pytest.raises(MediaFault, match="gone since ingest"):
            list(samples.of_next_clip())
        assert list(samples.of_next_clip()) == []
        assert len(list(samples.of_next_clip())) == len(items)
