"""`hvkf gc` beside stages, request by request: no commit ever lists what was deleted.

Leases are left out on purpose: each process is taken for one that was frozen, whose lease has
ended. All orders with up to two switches between two processes are tried, and random ones of three.
"""

import hashlib
from collections.abc import Callable
from itertools import count, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvkf import ledger
from hvkf.errors import TryAgain
from hvkf.garbage import find_garbage, remove_garbage
from hvkf.ledger_paths import NUMBERED, segment_path, shard_prefix
from hvkf.records import DatasetCommit, FileEntry, ItemEntry, SegmentRecord
from hvkf.storage import Store
from tests.memory_store import Actor, MemoryStore, run_schedule

ROOT = "scenes/test"
MAX_RUNS = 6
MOST_STEPS = 80
CLOCK = count(1000, 1000)
"""Whenever a sweep looks at it, all leases have ended, and it is long before now."""


def content_of(segment: str) -> bytes:
    return f"shard of {segment}".encode()


def make(store: Store, segment: str) -> None:
    """Write a segment as `SegmentWriter.commit` does."""
    data = content_of(segment)
    sha256 = hashlib.sha256(data).hexdigest()
    prefix = ledger.free_prefix(store, shard_prefix(ROOT, "32x32x5", segment, sha256))
    store.put(f"{prefix}/index.json", data)
    record = SegmentRecord(
        segment_id=segment,
        bucket="32x32x5",
        prefix=prefix,
        items=(ItemEntry(key=f"item of {segment}", source_sha256="s", sha256=sha256),),
        files=(FileEntry(name="index.json", sha256=sha256, size=len(data)),),
        attempt="test",
    )
    ledger.put_segment(store, ROOT, record)


def commit(store: Store, dataset: str, segments: tuple[str, ...]) -> None:
    def draft(previous: DatasetCommit | None) -> DatasetCommit:
        before = () if previous is None else previous.segments
        listed = (*before, *(segment for segment in segments if segment not in before))
        return ledger.empty_commit(dataset).model_copy(update={"segments": listed})

    ledger.commit_dataset(store, ROOT, dataset, draft)


def stage(dataset: str, *segments: str) -> Callable[[Store], None]:
    """A stage's command: make what is missing, commit; told to, run it again."""

    def work(store: Store) -> None:
        for _ in range(MAX_RUNS):
            for segment in sorted(ledger.missing_segments(store, ROOT, segments)):
                make(store, segment)
            try:
                commit(store, dataset, segments)
            except TryAgain:
                continue
            return
        raise AssertionError("it never came to an end")

    return work


def sweep(store: Store) -> None:
    """`hvkf gc --delete --older-than-hours 0`, whose lease has ended for all others."""
    remove_garbage(store, find_garbage(store, 0), clock=lambda: float(next(CLOCK)))


def begun(*, committed: tuple[str, ...] = (), finished: tuple[str, ...] = ()) -> dict[str, bytes]:
    """A workspace with committed segments, finished ones, and pieces of a killed worker."""
    store = MemoryStore()
    for segment in (*committed, *finished):
        make(store, segment)
    if committed:
        commit(store, "d", committed)
    killed = shard_prefix(ROOT, "32x32x5", "b1", hashlib.sha256(content_of("b1")).hexdigest())
    store.put(f"{killed}/index.json", content_of("b1"))
    return store.objects


def check(objects: dict[str, bytes]) -> None:
    """Every segment of every commit has its record, and every shard its bytes."""
    for path, data in objects.items():
        folder, _, name = path.rpartition("/")
        if "/commits/" not in folder or not NUMBERED.fullmatch(name):
            continue
        for segment in DatasetCommit.from_json(data).segments:
            record = SegmentRecord.from_json(objects[segment_path(ROOT, segment)])
            assert record.files, f"{path} lists {segment}, which was deleted"
            for entry in record.files:
                stored = objects.get(f"{record.prefix}/{entry.name}")
                assert stored == content_of(segment), f"{path} lists {segment} without its shards"


def listed(objects: dict[str, bytes], dataset: str) -> set[str]:
    found = ledger.latest_dataset(MemoryStore(objects), ROOT, dataset)
    assert found is not None
    return set(found.segments)


def play(objects: dict[str, bytes], works: list[Callable[[Store], None]], order: list[int]) -> None:
    shared = dict(objects)
    actors = [Actor(shared, work) for work in works]
    run_schedule(actors, order, lambda: check(shared))
    assert {"a1", "b1"} <= listed(shared, "d")
    # What was left condemned by a sweep is no obstacle: the next commands go on.
    sweep(MemoryStore(shared))
    stage("e", "a1", "b1", "c1")(MemoryStore(shared))
    check(shared)


STARTS = {
    "a new data set": begun(finished=("a1",)),
    "a committed data set": begun(committed=("c1",), finished=("a1",)),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_orders_with_two_switches_keep_what_is_committed(
    start: str, first: int, every: int
) -> None:
    """`every` request of both, or each fourth of them, is where the other process goes on."""
    works = [stage("d", "a1", "b1"), sweep]
    for one, two in product(range(0, 28, every), range(0, 34, every)):
        order = [first] * one + [1 - first] * two + [first] * MOST_STEPS
        play(STARTS[start], works, order)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(STARTS)), st.lists(st.integers(0, 3), min_size=20, max_size=MOST_STEPS)
)
def test_two_stages_and_two_sweeps_in_any_order_keep_what_is_committed(
    start: str, order: list[int]
) -> None:
    works = [stage("d", "a1", "b1"), stage("d", "a1", "c1"), sweep, sweep]
    play(STARTS[start], works, order)


@pytest.mark.parametrize("killed_after", range(0, 34, 3))
def test_a_sweep_that_is_killed_anywhere_blocks_nobody(killed_after: int) -> None:
    shared = dict(STARTS["a committed data set"])
    killed = Actor(shared, sweep)
    for _ in range(killed_after):
        if not killed.is_done:
            killed.go_on()
    killed.kill()
    for work in (stage("d", "a1", "b1"), sweep, stage("d", "a1", "b1")):
        work(MemoryStore(shared))
        check(shared)
    assert listed(shared, "d") == {"a1", "b1", "c1"}


@pytest.mark.parametrize("killed_after", range(0, 28, 3))
def test_a_stage_that_is_killed_anywhere_loses_nothing(killed_after: int) -> None:
    shared = dict(STARTS["a new data set"])
    killed = Actor(shared, stage("d", "a1", "b1"))
    for _ in range(killed_after):
        if not killed.is_done:
            killed.go_on()
    killed.kill()
    for work in (sweep, stage("d", "a1", "b1"), sweep):
        work(MemoryStore(shared))
        check(shared)
    assert listed(shared, "d") == {"a1", "b1"}


def test_the_check_sees_a_deletion_that_asks_nobody() -> None:
    """As `hvkf gc` did: it lists, a stage commits, it deletes."""
    shared = dict(STARTS["a new data set"])
    found = find_garbage(MemoryStore(shared), 0)
    stage("d", "a1", "b1")(MemoryStore(shared))
    for file in found.files:
        MemoryStore(shared).delete(file.path)
    with pytest.raises((AssertionError, KeyError)):
        check(shared)
