"""`hvkf gc`: what counts as used, who stops it, and which files are none of ours."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.errors import TryAgain
from hvkf.garbage import PARTIAL_AGE_S, find_garbage, remove_garbage
from hvkf.ledger_paths import segment_path
from hvkf.records import Part, Plan
from hvkf.storage import FolderStore, Store
from hvkf.sweeps import begin_sweep, change_sweep
from hvkf.uses import LIFE_S, PLAN_LIFE_S, WORK, WorkUse, at_work, close_plan, live_work
from tests.commands import run_command
from tests.test_garbage_interleavings import ROOT, check, commit, make, stage

FOREIGN = [
    "notes.txt",
    "scenes/.DS_Store",
    "scenes/test/.DS_Store",
    "scenes/test/commits/d/zzz.txt",
    "scenes/test/commits/zzz.txt",
    "scenes/test/ledger/zzz.txt",
    "scenes/test/ledger/._a1.json",
    "scenes/test/32x32x5/Thumbs.db",
    "latents/README.md",
]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def objects(store: FolderStore) -> dict[str, bytes]:
    return {path: store.read(path) for kind in ("scenes", "latents") for path in store.list(kind)}


def found(store: FolderStore, min_age_s: float = 0) -> set[str]:
    return {file.path for file in find_garbage(store, min_age_s).files}


def prefix_of(store: FolderStore, segment: str) -> str:
    return ledger.read_segment(store, ROOT, segment).prefix


def gc(store: FolderStore) -> set[str]:
    return {file.path for file in remove_garbage(store, find_garbage(store, 0))}


def test_listed_then_committed_then_deleted_is_kept(store: FolderStore) -> None:
    """Before, the committed data set was gone, and every stage failed."""
    make(store, "a1")
    garbage = find_garbage(store, 0)
    assert segment_path(ROOT, "a1") in {file.path for file in garbage.files}
    commit(store, "d", ("a1",))
    assert remove_garbage(store, garbage) == []
    check(objects(store))
    stage("d", "a1", "b1")(store)
    check(objects(store))


def test_what_was_deleted_is_made_again_elsewhere_and_its_old_record_says_nothing(
    store: FolderStore,
) -> None:
    make(store, "a1")
    before = prefix_of(store, "a1")
    assert gc(store) == {segment_path(ROOT, "a1"), f"{before}/index.json"}
    assert list(store.list(before)) == []
    assert ledger.missing_segments(store, ROOT, ["a1"]) == {"a1"}
    with pytest.raises(TryAgain, match=r"a1\.json is not made, or `hvkf gc` removed it since"):
        commit(store, "d", ("a1",))
    assert gc(store) == set()
    stage("d", "a1")(store)
    assert prefix_of(store, "a1") == f"{before}-1"
    check(objects(store))
    assert gc(store) == set()


def test_what_is_young_is_left(store: FolderStore) -> None:
    make(store, "a1")
    assert found(store, 60) == set()
    old_s = time.time() - 120
    os.utime(store.root / prefix_of(store, "a1") / "index.json", (old_s, old_s))
    assert found(store, 60) == set(), "its record is younger than its shards"
    os.utime(store.root / segment_path(ROOT, "a1"), (old_s, old_s))
    assert len(found(store, 60)) == 2


def test_a_file_that_is_being_written_is_left_whatever_age_is_asked_for(
    store: FolderStore,
) -> None:
    file = store.root / "scenes" / ".partial-1"
    file.parent.mkdir()
    file.write_bytes(b"half")
    assert found(store) == set()
    old_s = time.time() - PARTIAL_AGE_S - 1
    os.utime(file, (old_s, old_s))
    assert gc(store) == {"scenes/.partial-1"}
    assert not file.exists()


def plan_of(*segments: str) -> Plan:
    outputs = tuple(segment_path(ROOT, segment) for segment in segments)
    parts = (Part(index=0, outputs=outputs, work={}),)
    inputs = {"root": ROOT, "dataset": "d", "number": 1}
    return Plan(stage="cache", digest="abc", config={}, inputs=inputs, parts=parts)


def test_the_finished_parts_of_a_plan_that_is_not_committed_are_used(store: FolderStore) -> None:
    ledger.put_plan(store, plan_of("a1", "b1"))
    make(store, "a1")
    make(store, "c1")
    assert {Path(path).stem for path in found(store)} == {"c1", "index"}
    close_plan(store, plan_of("a1", "b1"))
    assert segment_path(ROOT, "a1") in found(store)


def test_a_plan_that_was_stored_after_the_listing_counts_too(store: FolderStore) -> None:
    make(store, "a1")
    garbage = find_garbage(store, 0)
    ledger.put_plan(store, plan_of("a1"))
    assert remove_garbage(store, garbage) == []
    assert ledger.missing_segments(store, ROOT, ["a1"]) == set()


def test_a_plan_that_nobody_commits_counts_for_a_week(store: FolderStore) -> None:
    ledger.put_plan(store, plan_of("a1"))
    make(store, "a1")
    later_s = time.time() + PLAN_LIFE_S + 60
    assert find_garbage(store, 0, clock=lambda: later_s).prefixes == {prefix_of(store, "a1")}


def test_a_pending_part_is_one_whose_segment_was_deleted(store: FolderStore) -> None:
    plan = plan_of("a1")
    make(store, "a1")
    assert ledger.pending_parts(store, plan) == []
    gc(store)
    assert ledger.pending_parts(store, plan) == list(plan.parts)
    make(store, "a1")
    assert ledger.pending_parts(store, plan) == []


def test_nothing_is_deleted_while_a_command_is_at_work_and_it_is_named(store: FolderStore) -> None:
    make(store, "a1")
    garbage = find_garbage(store, 0)
    with at_work(store, "hvkf encode"):
        with pytest.raises(TryAgain) as caught:
            remove_garbage(store, garbage)
        said = str(caught.value)
        assert "hvkf encode" in said
        assert f":{os.getpid()} is at work since 20" in said
        assert "stop it (Ctrl-C or SIGTERM" in said
    check(objects(store))
    assert remove_garbage(store, garbage)


def test_a_command_that_begins_while_a_deletion_decides_makes_it_withdraw(tmp_path: Path) -> None:
    class Beginning(FolderStore):
        """Another command begins at the moment at which the deletion names what it condemns."""

        def put(self, path: str, data: bytes) -> None:
            super().put(path, data)
            if path.startswith("gc/") and b'"condemning"' in data:
                FolderStore(tmp_path).put(f"{WORK}/{'0' * 32}.json", use.to_json())

    with at_work(FolderStore(tmp_path), "hvkf cache"):
        (use,) = live_work(FolderStore(tmp_path), time.time())
    store = Beginning(tmp_path)
    make(store, "a1")
    with pytest.raises(TryAgain, match="hvkf cache on"):
        gc(store)
    assert ledger.missing_segments(store, ROOT, ["a1"]) == set()


def test_the_lease_of_a_killed_process_of_this_machine_ends_at_once(store: FolderStore) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hvkf.storage import FolderStore\n"
        "from hvkf.uses import at_work\n"
        "with at_work(FolderStore(Path(sys.argv[1])), 'hvkf train'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(store.root)], check=False)
    assert ended.returncode == -9
    assert len(list(store.list(WORK))) == 1
    make(store, "a1")
    assert gc(store)
    assert list(store.list(WORK)) == []


def test_the_lease_of_another_machine_ends_when_it_is_not_renewed(store: FolderStore) -> None:
    now_s = 1000.0
    use = WorkUse(
        what="hvkf train",
        owner="elsewhere:1",
        machine="elsewhere",
        process=1,
        process_started_s=0.0,
        since_s=now_s,
        until_s=now_s + LIFE_S,
    )
    store.put(f"{WORK}/{'0' * 32}.json", use.to_json())
    assert live_work(store, now_s + LIFE_S - 1) == [use]
    assert live_work(store, now_s + LIFE_S) == []


def test_two_deletions_at_once_are_one_and_the_other_is_told(store: FolderStore) -> None:
    make(store, "a1")
    running = begin_sweep(store)
    with pytest.raises(TryAgain, match=r"is deleting in .* since 20.*lease ends at 20"):
        gc(store)
    change_sweep(store, running, "done", set())
    assert gc(store)


@pytest.mark.parametrize("path", FOREIGN)
def test_a_foreign_file_is_named_left_alone_and_breaks_nothing(
    store: FolderStore, path: str
) -> None:
    make(store, "c1")
    commit(store, "d", ("c1",))
    make(store, "a1")
    store.put(path, b"\0 not ours")
    assert find_garbage(store, 0).foreign == (path,)
    assert segment_path(ROOT, "a1") in gc(store)
    assert store.read(path) == b"\0 not ours"
    latest = ledger.latest_dataset(store, ROOT, "d")
    assert latest is not None
    assert latest.segments == ("c1",)
    stage("d", "a1", "b1")(store)
    check(objects(store))


def test_a_foreign_file_among_the_shards_stays_when_they_are_deleted(store: FolderStore) -> None:
    make(store, "a1")
    foreign = f"{prefix_of(store, 'a1')}/.DS_Store"
    store.put(foreign, b"\0")
    gc(store)
    assert find_garbage(store, 0) == ((), frozenset(), (foreign,), ())


def test_the_command_lists_deletes_and_says_what_is_not_ours(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    make(store, "a1")
    store.put("registry/notes.txt", b"mine")
    store.put("scenes/.DS_Store", b"\0")
    place = ["--workspace", str(store.root), "--older-than-hours", "0"]
    run_command("gc", *place)
    said = capsys.readouterr().out
    assert "not of hvkf, left alone: scenes/.DS_Store" in said
    assert "not of hvkf, left alone: registry/notes.txt" in said
    assert segment_path(ROOT, "a1") in said
    assert "can go" in said
    run_command("gc", *place, "--delete", "--yes")
    assert "2 objects, 0.0 MB removed" in capsys.readouterr().out
    assert store.exists("registry/notes.txt")


def test_the_newest_commit_is_found_beside_foreign_files_of_every_kind(store: Store) -> None:
    commit_folder = ledger.dataset_folder(ROOT, "d")
    make(store, "a1")
    commit(store, "d", ("a1",))
    for name in ("zzz.txt", "000009.json.bak", "~$000009.json", "9.json", ".DS_Store", "x/1.json"):
        store.put(f"{commit_folder}/{name}", b"\0")
    found = ledger.latest_dataset(store, ROOT, "d")
    assert found is not None
    assert found.number == 1
