"""What ingest chooses about odd videos is in the catalog and the report, and cache follows it."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hvkf import catalog, ledger
from hvkf.config import Config
from hvkf.errors import BadInput, Stopped
from hvkf.lossless_video import unpack_frames
from hvkf.records import Clip, Reading, Summary, digest
from hvkf.shards import Segment
from hvkf.stages import cache, cache_frames, ingest, ingest_scan
from hvkf.storage import FolderStore
from hvkf.video import decode_frames, probe
from tests.videos import Frames, encode, encode_tagged, moving_frames
from tests.workspaces import small_config, write_clip, write_table

BUCKETS = ["64x64x5"]


def greys(num_frames: int, size: int = 64) -> Frames:
    """Frame k is of level 20 + 5k."""
    levels = 20 + 5 * np.arange(num_frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, size, size, 3)).copy()


def config_of(folder: Path, names: Sequence[str], **sections: Mapping[str, object]) -> Config:
    table = write_table(folder / "data", [(f"of {name}", f"videos/{name}") for name in names])
    settings: dict[str, Any] = {
        "ingest": {"metadata": str(table), "max_failed_fraction": 1.0, "min_holdout": 0},
        "cache": {"bucket_reso": BUCKETS, "frames": "head"},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return small_config(folder, table, **settings)


def videos(folder: Path) -> Path:
    (folder / "data" / "videos").mkdir(parents=True, exist_ok=True)
    return folder / "data" / "videos"


def ingested(config: Config) -> tuple[Summary, dict[str, Clip], dict[str, Any]]:
    store = FolderStore(Path(config.workspace))
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    summary = ingest.commit(plan, store)
    clips = catalog.read_clips(store, catalog.newest_catalog(store, "default").catalog)
    report: dict[str, Any] = json.loads(store.read(summary.links["report"]))
    return summary, {Path(clip.source).name: clip for clip in clips}, report


def cached(config: Config) -> tuple[Summary, dict[str, Frames]]:
    store = FolderStore(Path(config.workspace))
    plan = cache.plan(config, store)
    cache.run(plan, store, plan.parts)
    summary = cache.commit(plan, store)
    made: dict[str, Frames] = {}
    for segment in ledger.latest_dataset(store, cache.SCENES_ROOT, "default").segments:  # type: ignore[union-attr]
        record = ledger.read_segment(store, cache.SCENES_ROOT, segment)
        samples = Segment(store, record, Path(config.workspace) / "fetched")
        for position in range(len(record.items)):
            sample = samples[position]
            made[Path(sample["source"]).name] = unpack_frames(sample["video"])
    return summary, made


def levels(frames: Frames) -> list[int]:
    """Which of the grey frames these are."""
    return [round((int(frame.mean()) - 20) / 5) for frame in frames]


def test_a_time_lapse_and_a_jump_of_a_day_are_taken_and_told(tmp_path: Path) -> None:
    folder = videos(tmp_path)
    hours = [i * 3_600_000 for i in range(10)]
    jump = [i * 40 + (93_600_000 if i > 4 else 0) for i in range(10)]
    encode(folder / "hourly.mkv", greys(10), "ffv1", times=hours)
    encode(folder / "jump.mkv", greys(10)[::-1].copy(), "ffv1", times=jump)
    config = config_of(tmp_path, ["hourly.mkv", "jump.mkv"])
    _, clips, report = ingested(config)
    assert clips["hourly.mkv"].fps == pytest.approx(1 / 3600)
    assert clips["jump.mkv"].fps == pytest.approx(25, rel=0.01)
    assert [entry["source"] for entry in report["read"]] == ["videos/hourly.mkv", "videos/jump.mkv"]
    assert levels(cached(config)[1]["hourly.mkv"]) == [0, 1, 2, 3, 4]


def test_resampling_a_time_lapse_would_make_stills_and_is_refused(tmp_path: Path) -> None:
    folder = videos(tmp_path)
    encode(folder / "hourly.mkv", greys(10), "ffv1", times=[i * 3_600_000 for i in range(10)])
    write_clip(folder / "good.mp4", 1)
    config = config_of(tmp_path, ["hourly.mkv", "good.mp4"], ingest={"target_fps": 24})
    summary, clips, _ = ingested(config)
    assert list(clips) == ["good.mp4"]
    assert "not taken: videos/hourly.mkv: its frames are 3.6e+03 s apart" in summary.text
    assert "[too-slow]" in summary.text


def test_timestamps_decide_which_frames_of_a_variable_video_are_taken(tmp_path: Path) -> None:
    # Half a second at 40 frames a second, then two at 10: the mean rate is 16.
    times = [25 * i for i in range(20)] + [500 + 100 * i for i in range(20)]
    encode(videos(tmp_path) / "phone.mkv", greys(40), "ffv1", times=times)
    config = config_of(
        tmp_path,
        ["phone.mkv"],
        ingest={"target_fps": 20},
        cache={"bucket_reso": ["64x64x41"]},
    )
    summary, clips, report = ingested(config)
    clip = clips["phone.mkv"]
    assert clip.is_variable_fps
    # The last frame is shown as long as the track's own rate of 24 says.
    assert clip.duration_s == pytest.approx(2.4 + 1 / 24, abs=0.001)
    assert (clip.num_frames, clip.fps) == (49, 20)
    assert "variable-fps 1" in summary.text
    assert "variable" in clip.notes
    assert "variable-fps" in {note["code"] for note in report["read"][0]["notes"]}
    taken = levels(cached(config)[1]["phone.mkv"])
    assert taken[:10] == list(range(0, 20, 2))
    for number, frame in enumerate(taken):
        assert abs(times[frame] - 50 * number) <= 50


def test_scenes_of_a_variable_video_count_from_their_own_start(tmp_path: Path) -> None:
    dark, light = greys(20), np.full((20, 64, 64, 3), 250, np.uint8)
    light[:, :32] = np.arange(20, dtype=np.uint8)[:, None, None, None]
    times = [25 * i for i in range(20)] + [500 + 100 * i for i in range(20)]
    frames = np.concatenate([dark, light])
    encode(videos(tmp_path) / "a.mkv", frames, "ffv1", times=times)
    config = config_of(tmp_path, ["a.mkv"], ingest={"target_fps": 10, "scene_split": "content"})
    store = FolderStore(Path(config.workspace))
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    ingest.commit(plan, store)
    first, second = catalog.read_clips(store, catalog.newest_catalog(store, "default").catalog)
    assert (first.num_frames, second.num_frames) == (5, 19)
    assert first.duration_s == pytest.approx(0.5)
    assert second.duration_s == pytest.approx(1.9 + 1 / 24, abs=0.001)
    assert first.frames == (0, 4, 8, 12, 16)
    assert second.frames == tuple(range(19))


def test_the_bucket_follows_the_shown_shape(tmp_path: Path) -> None:
    path = videos(tmp_path) / "pal.mpg"
    frames = moving_frames(6, 720, 576)
    encode_tagged(path, frames, "mpeg2video", "yuv420p", aspect=Fraction(64, 45))
    config = config_of(tmp_path, ["pal.mpg"])
    _, clips, _ = ingested(config)
    assert (clips["pal.mpg"].width, clips["pal.mpg"].height) == (1024, 576)
    assert cached(config)[1]["pal.mpg"].shape == (5, 48, 80, 3)


def test_a_plain_video_keeps_its_identity_and_another_reading_changes_it(tmp_path: Path) -> None:
    write_clip(videos(tmp_path) / "a.mp4", 1)
    config = config_of(tmp_path, ["a.mp4"])
    clip = ingested(config)[1]["a.mp4"]
    assert clip.reading == Reading()
    assert clip.notes == ""
    # As both were before anything but tags was read.
    assert clip.clip_id == digest([clip.source_sha256, 0, 20, 12.0])
    item = cache.wanted_items([clip], config.cache).items[0]
    key = [clip.source_sha256, 0, 20, 12.0, 12.0, "64x64x5", [0, 1, 2, 3, 4], clip.caption]
    assert item.key == digest(key)
    keys = {
        cache.wanted_items([clip.model_copy(update=update)], config.cache).items[0].key
        for update in (
            {},
            {"reading": Reading(matrix="bt709")},
            {"reading": Reading(fields="tff")},
            {"reading": Reading(track=1)},
            {"frames": tuple(range(20))},
        )
    }
    assert len(keys) == 5


def test_a_catalog_from_before_readings_is_read(tmp_path: Path) -> None:
    write_clip(videos(tmp_path) / "a.mp4", 1)
    clip = ingested(config_of(tmp_path, ["a.mp4"]))[1]["a.mp4"]
    new = {"is_variable_fps", "frames", "reading", "notes"}
    old = {name: value for name, value in clip.model_dump().items() if name not in new}
    store = FolderStore(tmp_path / "other")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([old]), sink)
    store.put("old.parquet", sink.getvalue().to_pybytes())
    assert catalog.read_clips(store, "old.parquet") == [clip]


def test_a_setting_refuses_what_it_names_and_looks_again(tmp_path: Path) -> None:
    frames = np.stack([np.roll(frame, 3 * i, axis=1) for i, frame in enumerate(moving_frames(8))])
    frames[:, 1::2] = np.roll(frames, 1, axis=0)[:, 1::2]
    encode_tagged(videos(tmp_path) / "a.mp4", frames, pix_fmt="yuv422p", fields="tff")
    assert "interlaced" in ingested(config_of(tmp_path, ["a.mp4"]))[1]["a.mp4"].notes
    refusing = config_of(tmp_path, ["a.mp4"], ingest={"interlaced": "refuse"})
    with pytest.raises(BadInput, match="not one video can be used"):
        ingested(refusing)


def break_on(name: str, error: BaseException, original: Any) -> Any:
    def broken(file: Path, *arguments: Any, **named: Any) -> Any:
        if Path(file).name == name:
            raise error
        return original(file, *arguments, **named)

    return broken


def test_whatever_a_video_makes_ingest_raise_is_its_own_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("good.mp4", "odd.mp4")):
        write_clip(videos(tmp_path) / name, number)
    config = config_of(tmp_path, ["odd.mp4", "good.mp4"])
    broken = break_on("odd.mp4", ZeroDivisionError("division by zero"), probe)
    monkeypatch.setattr(ingest_scan, "probe", broken)
    summary, clips, report = ingested(config)
    assert list(clips) == ["good.mp4"]
    (refused,) = report["refused"]
    assert (refused["code"], refused["source"]) == ("unexpected", "videos/odd.mp4")
    assert "ZeroDivisionError" in refused["message"]
    assert "videos/odd.mp4" in summary.text


@pytest.mark.parametrize("error", [Stopped("told to stop"), KeyboardInterrupt(), MemoryError()])
def test_a_stop_is_no_failure_of_the_video_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_clip(videos(tmp_path) / "a.mp4", 1)
    config = config_of(tmp_path, ["a.mp4"])
    monkeypatch.setattr(ingest_scan, "probe", break_on("a.mp4", error, probe))
    with pytest.raises(type(error)):
        ingested(config)


def test_whatever_a_video_makes_cache_raise_is_its_own_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("good.mp4", "odd.mp4")):
        write_clip(videos(tmp_path) / name, number)
    config = config_of(tmp_path, ["odd.mp4", "good.mp4"], cache={"max_failed_fraction": 1.0})
    ingested(config)
    error = IndexError("of a library")
    broken = break_on("odd.mp4", error, decode_frames)
    monkeypatch.setattr(cache_frames, "decode_frames", broken)
    summary, made = cached(config)
    assert list(made) == ["good.mp4"]
    assert "failed: videos/odd.mp4: 64x64x5: videos/odd.mp4 cannot be used (IndexError" in (
        summary.text
    )
