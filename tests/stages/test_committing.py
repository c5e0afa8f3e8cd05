"""Segments are committed in a thread; a fault there is not lost, and no scratch files stay."""

from functools import partial
from pathlib import Path
from threading import Event, Timer

import pytest

from hvkf import ledger
from hvkf.shards import SegmentWriter
from hvkf.stages import committing
from hvkf.stages.committing import Committer
from hvkf.storage import FolderStore

TIMEOUT_S = 30


def writer_of(segment_id: str) -> SegmentWriter:
    writer = SegmentWriter(segment_id, "32x32x5", {"item_key": "str"})
    writer.add(segment_id, "source", {"item_key": segment_id})
    return writer


def test_segments_count_when_the_committer_is_left_and_their_scratch_files_are_gone(
    tmp_path: Path,
) -> None:
    store = FolderStore(tmp_path)
    writers = [writer_of(name) for name in ("one", "two")]
    done: list[str] = []
    with Committer(store, "scenes/test") as committer:
        for writer in writers:
            committer.commit(writer, partial(done.append, writer.segment_id))
    assert [ledger.read_segment(store, "scenes/test", name).items[0].key for name in ("one", "two")]
    assert done == ["one", "two"]
    assert not [writer for writer in writers if writer._folder.exists()]


def test_a_fault_of_a_commit_is_raised_later_and_its_scratch_files_are_gone(
    tmp_path: Path,
) -> None:
    class Full(FolderStore):
        def take(self, file: Path, path: str) -> None:
            raise OSError("no room")

    writers = [writer_of("one"), writer_of("two")]
    with pytest.raises(OSError, match="no room"):
        commit_each(Full(tmp_path), writers)
    assert not [writer for writer in writers if writer._folder.exists()]


def commit_each(store: FolderStore, writers: list[SegmentWriter]) -> None:
    with Committer(store, "scenes/test") as committer:
        for writer in writers:
            committer.commit(writer)


def test_a_fault_of_the_last_commit_is_raised_when_the_committer_is_left(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("the last one")

    committer = Committer(FolderStore(tmp_path), "scenes/test")
    with pytest.raises(ValueError, match="the last one"), committer:
        committer.commit(writer_of("one"), fail)


def test_segments_wait_for_those_before_them_only_where_these_hold_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, goes_on, done = FolderStore(tmp_path), Event(), list[str]()

    def finish_first() -> None:
        assert goes_on.wait(TIMEOUT_S)
        done.append("one")

    writers = [writer_of(name) for name in ("one", "two", "three")]
    monkeypatch.setattr(committing, "PENDING_BYTES", 2 * writers[0].num_bytes + 1)
    with Committer(store, "scenes/test") as committer:
        committer.commit(writers[0], finish_first)
        committer.commit(writers[1], partial(done.append, "two"))
        assert not done
        Timer(0.2, goes_on.set).start()
        committer.commit(writers[2])  # "three" is longer: only one of the others may still wait
        assert done[0] == "one"
