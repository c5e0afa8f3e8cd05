"""The ledger: who comes first wins, a lost answer is no loss, and commits are numbered."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf import ledger
from hvkf.errors import AlreadyExists, BadInput, CorruptData
from hvkf.records import DatasetCommit, Failure, FileEntry, ItemEntry, Part, Plan, SegmentRecord
from hvkf.storage import FolderStore

ROOT = "latents/x"


def segment(attempt: str, content: str = "a") -> SegmentRecord:
    return SegmentRecord(
        segment_id="s",
        bucket="64x64x17",
        prefix=f"{ROOT}/64x64x17/s-{content}",
        items=(ItemEntry(key="k", source_sha256="v", sha256=content),),
        files=(FileEntry(name="shard", sha256=content, size=1),),
        attempt=attempt,
    )


def commit(number: int, plan: str = "p") -> DatasetCommit:
    return DatasetCommit(
        dataset="d",
        number=number,
        plan=plan,
        catalog="c",
        segments=(str(number),),
        num_items=1,
        num_failed=0,
    )


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_the_first_record_of_a_segment_counts(store: FolderStore) -> None:
    first = ledger.put_segment(store, ROOT, segment("one"))
    second = ledger.put_segment(store, ROOT, segment("two", content="b"))
    assert second == first == ledger.read_segment(store, ROOT, "s")


def test_a_put_whose_answer_was_lost_succeeds_when_repeated(store: FolderStore) -> None:
    ledger.put_segment(store, ROOT, segment("one"))
    assert ledger.put_segment(store, ROOT, segment("one")).attempt == "one"
    folder = ledger.dataset_folder(ROOT, "d")
    assert ledger.put_commit(store, folder, commit(1)) == ledger.put_commit(
        store, folder, commit(1)
    )


def test_two_commits_cannot_take_the_same_number(store: FolderStore) -> None:
    folder = ledger.dataset_folder(ROOT, "d")
    ledger.put_commit(store, folder, commit(1))
    with pytest.raises(AlreadyExists):
        ledger.put_commit(store, folder, commit(1, plan="other"))


def test_the_newest_commit_is_the_one_with_the_highest_number(store: FolderStore) -> None:
    folder = ledger.dataset_folder(ROOT, "d")
    assert ledger.latest_dataset(store, ROOT, "d") is None
    for number in range(1, 12):
        ledger.put_commit(store, folder, commit(number))
    assert ledger.latest_dataset(store, ROOT, "d") == commit(11)
    assert ledger.dataset_before(store, ROOT, "d", 11) == ("10",)
    assert ledger.dataset_before(store, ROOT, "d", 1) == ()


def test_a_segment_record_that_is_gone_is_corrupt_data(store: FolderStore) -> None:
    with pytest.raises(CorruptData, match="is gone although a commit names it"):
        ledger.read_segment(store, ROOT, "nothing")


def test_a_part_is_pending_until_all_its_outputs_are_there(store: FolderStore) -> None:
    parts = (
        Part(index=0, outputs=("a/1", "a/2"), work={}),
        Part(index=1, outputs=("b/3",), work={}),
    )
    plan = Plan(stage="cache", digest="d", config={}, inputs={}, parts=parts)
    store.put("a/1", b"")
    assert ledger.pending_parts(store, plan) == list(parts)
    store.put("b/3", b"")
    assert ledger.pending_parts(store, plan) == [parts[0]]
    store.put("a/2", b"")
    assert ledger.pending_parts(store, plan) == []


def test_a_plan_is_read_back(store: FolderStore) -> None:
    plan = Plan(stage="cache", digest="d", config={"workspace": "w"}, inputs={}, parts=())
    ledger.put_plan(store, plan)
    assert ledger.read_plan(store, "cache", "d") == plan
    with pytest.raises(BadInput, match="hvkf encode plan"):
        ledger.read_plan(store, "encode", "d")


@given(num_failed=st.integers(0, 20), num_ok=st.integers(0, 20), fraction=st.floats(0, 1))
def test_a_stage_fails_exactly_when_more_than_the_fraction_failed(
    num_failed: int, num_ok: int, fraction: float
) -> None:
    failures = [Failure(code="c", message=f"m{n}", source="s") for n in range(num_failed)]
    total = num_failed + num_ok
    if num_failed > fraction * total:
        with pytest.raises(BadInput, match=f"{num_failed} of {total} failed"):
            ledger.check_failures(failures, total, fraction, "x.max_failed_fraction")
    else:
        ledger.check_failures(failures, total, fraction, "x.max_failed_fraction")
