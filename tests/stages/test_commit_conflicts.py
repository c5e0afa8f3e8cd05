"""Two commands that commit the same data set at once: both end well, and nothing is lost."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hvkf import catalog, ledger
from hvkf.config import Config
from hvkf.ledger_paths import NUMBERED, numbered
from hvkf.records import DatasetCommit, Summary
from hvkf.stages import cache, encode, import_cache, ingest
from hvkf.stages.cache import SCENES_ROOT
from hvkf.storage import FolderStore, open_store
from hvkf.verify import verify_workspace
from tests.reference_caches import latent_record, write_latents_cache
from tests.workspaces import small_config, write_clip, write_dataset, write_table

WAIT_S = 240


class Overtaken(FolderStore):
    """A workspace in which another command commits just before this one does."""

    def __init__(self, root: Path, other: Callable[[], object]) -> None:
        super().__init__(root)
        self._other: Callable[[], object] | None = other

    def put_new(self, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        is_commit = "/commits" in folder and NUMBERED.fullmatch(name) and name != "000000.json"
        if self._other is not None and is_commit:
            other, self._other = self._other, None
            other()
        super().put_new(path, data)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return small_config(tmp_path, write_dataset(tmp_path / "data", 2))


@pytest.fixture
def store(config: Config) -> FolderStore:
    open_store(config.workspace)  # which writes its format
    return FolderStore(Path(config.workspace))


def ingested(config: Config, store: FolderStore) -> Summary:
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    return ingest.commit(plan, store)


def with_buckets(config: Config, *buckets: str) -> Config:
    settings = config.cache.model_copy(update={"bucket_reso": buckets})
    return config.model_copy(update={"cache": settings})


def both_cached(store: FolderStore, one: Config, two: Config) -> DatasetCommit:
    """Plan and make both on the same state; `two` commits just before `one` does."""
    plans = [cache.plan(config, store) for config in (one, two)]
    for plan in plans:
        cache.run(plan, store, plan.parts)
    overtaken = Overtaken(store.root, lambda: cache.commit(plans[1], store))
    cache.commit(plans[0], overtaken)
    found = ledger.latest_dataset(store, SCENES_ROOT, "default")
    assert found is not None
    return found


def keys_of(store: FolderStore, commit: DatasetCommit) -> list[str]:
    """The samples that count, each as often as it is stored."""
    masked = set(commit.masked)
    records = [ledger.read_segment(store, SCENES_ROOT, segment) for segment in commit.segments]
    return [item.key for record in records for item in record.items if item.key not in masked]


def wanted(store: FolderStore, config: Config) -> set[str]:
    clips = catalog.read_clips(store, catalog.newest_catalog(store, "default").catalog)
    return {item.key for item in cache.wanted_items(clips, config.cache).items}


def test_two_caches_of_the_same_settings_are_one_commit(config: Config, store: FolderStore) -> None:
    ingested(config, store)
    commit = both_cached(store, config, config)
    assert commit.number == 1
    assert sorted(keys_of(store, commit)) == sorted(wanted(store, config))


def test_two_caches_of_other_buckets_commit_one_after_the_other(
    config: Config, store: FolderStore
) -> None:
    ingested(config, store)
    small, both = with_buckets(config, "32x32x5"), with_buckets(config, "32x32x5", "32x48x9")
    commit = both_cached(store, both, small)
    assert commit.number == 2
    assert sorted(keys_of(store, commit)) == sorted(wanted(store, both))
    # What was overtaken is not made again: a plan finds its samples there.
    assert cache.plan(both, store).committed is not None
    assert cache.plan(small, store).parts == ()
    assert verify_workspace(store).faults == []


def test_caches_whose_segments_hold_some_of_the_same_samples_store_each_sample_once(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    """One was planned before a video came, the other after: their segments overlap."""
    ingested(config, store)
    plan = cache.plan(config, store)
    cache.run(plan, store, plan.parts)
    rows = [(f"take {number}", f"videos/{number:05d}.mp4") for number in range(4)]
    for number in (2, 3):
        write_clip(tmp_path / "data" / "videos" / f"{number:05d}.mp4", number)
    write_table(tmp_path / "data", rows)
    ingested(config, store)
    later = cache.plan(config, store)
    cache.run(later, store, later.parts)
    cache.commit(later, Overtaken(store.root, lambda: cache.commit(plan, store)))
    commit = ledger.latest_dataset(store, SCENES_ROOT, "default")
    assert commit is not None
    found = keys_of(store, commit)
    assert sorted(found) == sorted(wanted(store, config))
    assert len(set(found)) == len(found)


def test_an_encode_that_is_overtaken_commits_on_top(config: Config, store: FolderStore) -> None:
    ingested(config, store)
    small, both = with_buckets(config, "32x32x5"), with_buckets(config, "32x32x5", "32x48x9")
    plans = []
    for settings in (small, both):
        plan = cache.plan(settings, store)
        cache.run(plan, store, plan.parts)
        cache.commit(plan, store)
        plans.append(encode.plan(settings, store))
        encode.run(plans[-1], store, plans[-1].parts)
    overtaken = Overtaken(store.root, lambda: encode.commit(plans[0], store))
    encode.commit(plans[1], overtaken)
    found = encode.newest_latents(config, store)
    assert found is not None
    assert found[1].number == 2
    assert found[1].plan == plans[1].digest
    assert encode.plan(both, store).committed is not None


def test_an_ingest_that_is_overtaken_keeps_what_was_held_out(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    other_table = write_dataset(tmp_path / "other", 3)
    other = config.model_copy(
        update={"ingest": config.ingest.model_copy(update={"metadata": str(other_table)})}
    )
    ingest.commit(plan, Overtaken(store.root, lambda: ingested(other, store)))
    folder = catalog.commits_folder("default")
    assert len(numbered(store, folder)) == 2
    before = json.loads(store.read(numbered(store, folder)[0]))
    splits = json.loads(store.read(before["videos"]))["splits"]
    newest = catalog.read_clips(store, catalog.newest_catalog(store, "default").catalog)
    assert len({clip.source for clip in newest}) == 2
    assert all(splits[clip.source_sha256] == clip.split for clip in newest)


def test_an_import_that_is_overtaken_adds_to_the_other(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        write_latents_cache(tmp_path / name / "32x32x5_00", [latent_record(seed)])

    def imported(store: FolderStore, name: str) -> Summary:
        return import_cache.import_caches(config, store, [str(tmp_path / name)], 0.1)

    summary = imported(Overtaken(store.root, lambda: imported(store, "two")), "one")
    assert summary.counts["items"] == 2
    found = encode.newest_latents(config, store)
    assert found is not None
    assert (found[1].number, len(found[1].segments)) == (2, 2)
    assert len(catalog.read_clips(store, found[1].catalog)) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_caches_in_two_processes_at_once_both_end_well(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    """Four of four such pairs ended with exit code 1 and "was written before"."""
    ingested(config, store)
    pairs = np.array_split(["32x32x5", "32x48x9"], 2)
    for attempt in range(2):
        processes = []
        for number, buckets in enumerate(pairs):
            settings = with_buckets(config, *map(str, buckets), f"{32 + 16 * attempt}x64x5")
            file = tmp_path / f"{attempt}-{number}.json"
            file.write_text(settings.model_dump_json())
            command = [sys.executable, "-m", "hvkf.cli", "cache", "--config", str(file)]
            processes.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
        until_s = time.monotonic() + WAIT_S
        for process in processes:
            _, said = process.communicate(timeout=until_s - time.monotonic())
            assert process.returncode == 0, said
    commit = ledger.latest_dataset(store, SCENES_ROOT, "default")
    assert commit is not None
    found = keys_of(store, commit)
    assert len(set(found)) == len(found)
    assert verify_workspace(store).faults == []
