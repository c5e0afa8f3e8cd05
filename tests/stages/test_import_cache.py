import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvkf import ledger
from hvkf.catalog import read_clips
from hvkf.config import Config
from hvkf.errors import BadInput, CorruptData
from hvkf.lossless_video import unpack_frames
from hvkf.model.precision import from_stored
from hvkf.records import DatasetCommit, Summary
from hvkf.shards import Sample, Segment, SegmentWriter
from hvkf.stages import encode as encode_stage
from hvkf.stages.cache import SCENES_ROOT
from hvkf.stages.encode import latents_root
from hvkf.stages.import_cache import import_caches
from hvkf.storage import FolderStore, open_store
from hvkf.training.items import find_sources, read_items
from hvkf.verify import verify_workspace
from tests.reference_caches import (
    BY_THE_REFERENCE,
    SAME_WITHIN_TINY,
    latent_record,
    sampled_again,
    shard_of,
    video_record,
    write_latents_cache,
    write_videos_cache,
)
from tests.training.latents import run_training, train_config, write_latents


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return train_config(
        tmp_path / "workspace",
        ingest={"dataset": "old"},
        validation={"num_items": 0},
        cache={"segment_mb": 1},
    )


@pytest.fixture
def store(config: Config) -> FolderStore:
    return FolderStore(Path(config.workspace))


def import_into(config: Config, *folders: Path, same_within: float = 0.1) -> Summary:
    store = FolderStore(Path(config.workspace))
    return import_caches(config, store, [str(folder) for folder in folders], same_within)


def committed(config: Config, store: FolderStore, root: str) -> DatasetCommit:
    commit = ledger.latest_dataset(store, root, config.ingest.dataset)
    assert commit is not None
    return commit


def samples_of(
    config: Config, store: FolderStore, root: str, cache: Path
) -> Iterator[tuple[str, Sample]]:
    for segment_id in committed(config, store, root).segments:
        record = ledger.read_segment(store, root, segment_id)
        segment = Segment(store, record, cache)
        yield from ((record.bucket, segment[position]) for position in range(len(segment)))


def test_the_references_padding_repeats_are_dropped_and_said(
    config: Config, store: FolderStore
) -> None:
    """Its tool, run by two processes, stored four records for three samples."""
    summary = import_into(config, BY_THE_REFERENCE, same_within=SAME_WITHIN_TINY)
    assert summary.counts == {"items": 3, "new": 3, "repeats": 1, "failed": 0}
    assert "dropped: 32x32x5_01 record 1 repeats 32x32x5_01 record 0" in summary.text
    assert "hvkf train, the same settings, --ingest.dataset=old" in summary.text


def test_an_imported_cache_trains(config: Config, store: FolderStore, tmp_path: Path) -> None:
    for number in (0, 1):
        records = [latent_record(10 * number + index) for index in range(3)]
        write_latents_cache(tmp_path / "lat" / f"32x32x5_{number:02d}", records)
    write_latents_cache(tmp_path / "lat" / "48x32x9_00", [latent_record(5, "48x32x9")])
    import_into(config, tmp_path / "lat")
    items = read_items(store, find_sources(config, store), config.data)
    assert {bucket: len(keys) for bucket, keys in items.by_bucket().items()} == {
        "32x32x5": 6,
        "48x32x9": 1,
    }
    run_training(config, store)
    rows = store.read("runs/test/losses.jsonl").splitlines()
    assert len(rows) == 4
    assert all(np.isfinite(json.loads(row)["loss"]) for row in rows)


def test_every_value_is_the_caches_own_and_bfloat16_halves_the_size(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    record = latent_record(1)
    write_latents_cache(tmp_path / "32x32x5_00", [record])
    import_into(config, tmp_path / "32x32x5_00")
    root = latents_root(config, store)
    ((bucket, sample),) = samples_of(config, store, root, tmp_path)
    assert bucket == "32x32x5"
    assert sample["latents"].dtype == np.uint16
    for name, values in record.items():
        found = from_stored(sample[name]).float().numpy()
        assert np.array_equal(found, values), name


def test_values_that_bfloat16_cannot_hold_stay_float32(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    record = latent_record(1)
    record["latents"] = record["latents"] + np.float32(1e-3)
    write_latents_cache(tmp_path / "32x32x5_00", [record])
    import_into(config, tmp_path / "32x32x5_00")
    ((_, sample),) = samples_of(config, store, latents_root(config, store), tmp_path)
    assert sample["latents"].dtype == np.float32
    assert np.array_equal(sample["latents"], record["latents"])


def test_importing_again_adds_what_is_new_and_nothing_else(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    first = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1), latent_record(2)])
    repeated = [latent_record(2), sampled_again(latent_record(1)), latent_record(3)]
    second = write_latents_cache(tmp_path / "32x32x5_01", repeated)
    assert not import_into(config, first).reused
    root = latents_root(config, store)
    before = {path: store.read(path) for path in store.list("latents")}
    assert import_into(config, first).reused
    assert {path: store.read(path) for path in store.list("latents")} == before
    added = import_into(config, first, second)
    assert added.counts == {"items": 3, "new": 1, "repeats": 2, "failed": 0}
    commit = committed(config, store, root)
    assert (commit.number, commit.num_items, len(commit.segments)) == (2, 3, 2)
    assert len(read_clips(store, commit.catalog)) == 3
    assert before.items() <= {path: store.read(path) for path in store.list("latents")}.items()


def test_an_import_that_was_cut_off_ends_as_an_undisturbed_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lat" / "320x320x9_00"
    write_latents_cache(folder, [latent_record(index, "320x320x9") for index in range(9)])
    undisturbed = config.model_copy(update={"workspace": str(tmp_path / "undisturbed")})
    import_into(undisturbed, folder)
    commit = SegmentWriter.commit
    done = 0

    def cut_off(self: SegmentWriter, *arguments: Any) -> Any:
        nonlocal done
        if done == 2:
            raise InterruptedError
        done += 1
        return commit(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentWriter, "commit", cut_off)
        with pytest.raises(InterruptedError):
            import_into(config, folder)
    store = open_store(config.workspace)
    assert ledger.latest_dataset(store, latents_root(config, store), "old") is None
    import_into(config, folder)
    found, expected = (
        {
            path: store.read(path)
            for store in [FolderStore(Path(workspace))]
            for path in store.list("latents")
            if "/ledger/" not in path
        }
        for workspace in (config.workspace, undisturbed.workspace)
    )
    assert found == expected
    assert sum(path.endswith("index.json") for path in found) > 2
    assert verify_workspace(store)[1] == []


def test_records_that_cannot_train_are_left_out_and_said(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    records = [latent_record(index) for index in range(12)]
    records[3]["latents"][0, 0, 0, 0] = np.nan
    write_latents_cache(tmp_path / "32x32x5_00", records)
    summary = import_into(config, tmp_path / "32x32x5_00")
    assert summary.counts == {"items": 11, "new": 11, "repeats": 0, "failed": 1}
    assert "left out: 32x32x5_00 record 3: latents holds NaN or infinity" in summary.text
    assert committed(config, store, latents_root(config, store)).num_failed == 1


def test_more_faults_than_allowed_fail_the_import(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    records = [latent_record(1), latent_record(2, "32x16x5")]
    write_latents_cache(tmp_path / "32x32x5_00", records)
    with pytest.raises(BadInput, match=r"1 of 2 failed, more than encode\.max_failed_fraction"):
        import_into(config, tmp_path / "32x32x5_00")
    assert ledger.latest_dataset(store, latents_root(config, store), "old") is None


def test_a_damaged_shard_ends_the_import_before_anything_is_stored(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    write_latents_cache(tmp_path / "lat" / "32x32x5_00", [latent_record(1)])
    second = write_latents_cache(tmp_path / "lat" / "32x32x5_01", [latent_record(2)])
    shard = shard_of(second)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CorruptData, match=r"32x32x5_01/shard\.00000\.mds has 100 bytes"):
        import_into(config, tmp_path / "lat")
    assert list(store.list("latents")) == []


def test_a_data_set_of_hvkfs_own_is_not_added_to(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    write_latents(store, config)
    write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1)])
    with pytest.raises(BadInput, match=r"'old' .* give --dataset another name"):
        import_into(config, tmp_path / "32x32x5_00")


def test_imported_videos_are_encoded_and_train(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    write_videos_cache(tmp_path / "raw" / "32x32x5", [video_record(number) for number in range(3)])
    summary = import_into(config, tmp_path / "raw", tmp_path / "raw" / "32x32x5")
    assert summary.counts == {"items": 3, "new": 3, "repeats": 3, "failed": 0}
    assert "hvkf encode, the same settings, --ingest.dataset=old" in summary.text
    for _, scene in samples_of(config, store, SCENES_ROOT, tmp_path):
        number = int(scene["source"].partition(".")[0])
        assert np.array_equal(unpack_frames(scene["video"]), video_record(number)["video_arr"])
        assert (scene["original_width"], scene["original_height"]) == (640, 360)
    plan = encode_stage.plan(config, store)
    encode_stage.run(plan, store, plan.parts)
    encode_stage.commit(plan, store)
    run_training(config, store)
    assert store.exists("runs/test/result.json")
