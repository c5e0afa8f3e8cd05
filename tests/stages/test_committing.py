"""Segments are committed in a thread; a fault there is not lost, and no scratch files stay."""

from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.shards import SegmentWriter
from hvkf.stages.committing import Committer
from hvkf.storage import FolderStore


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
        committer.commit(writers, lambda: done.append("previews"))
    assert [ledger.read_segment(store, "scenes/test", name).items[0].key for name in ("one", "two")]
    assert done == ["previews"]
    assert not [writer for writer in writers if writer._folder.exists()]


def test_a_fault_of_a_commit_is_raised_with_the_next_and_its_scratch_files_are_gone(
    tmp_path: Path,
) -> None:
    class Full(FolderStore):
        def upload(self, file: Path, path: str) -> None:
            raise OSError("no room")

    writers = [writer_of("one"), writer_of("two")]
    with pytest.raises(OSError, match="no room"):
        commit_each(Full(tmp_path), writers)
    assert not [writer for writer in writers if writer._folder.exists()]


def commit_each(store: FolderStore, writers: list[SegmentWriter]) -> None:
    with Committer(store, "scenes/test") as committer:
        for writer in writers:
            committer.commit([writer])


def test_a_fault_of_the_last_commit_is_raised_when_the_committer_is_left(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("the last one")

    committer = Committer(FolderStore(tmp_path), "scenes/test")
    with pytest.raises(ValueError, match="the last one"), committer:
        committer.commit([writer_of("one")], fail)
