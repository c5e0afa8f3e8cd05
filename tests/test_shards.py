"""Segments: what is written is read back, byte by byte, or the fault is named."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hvkf.errors import CorruptData
from hvkf.records import SegmentRecord
from hvkf.shards import Segment, SegmentWriter
from hvkf.storage import FolderStore, Store, open_store
from hvkf.verify import verify_workspace

ROOT = "scenes/x"
COLUMNS = {"item_key": "str", "caption": "str", "video": "ndarray:uint8"}
SEGMENT = "0123456789abcdef0123456789abcdef"


def write(store: Store, num_items: int = 5) -> SegmentRecord:
    writer = SegmentWriter(SEGMENT, "64x64x17", COLUMNS)
    try:
        for number in range(num_items):
            video = np.full((3, 8, 8, 3), number, np.uint8)
            key = f"item{number}"
            writer.add(key, "source", {"item_key": key, "caption": "", "video": video})
        return writer.commit(store, ROOT, "here")
    finally:
        writer.close()


def test_samples_are_read_back(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "w")
    record = write(store)
    segment = Segment(store, record, tmp_path / "cache")
    assert len(segment) == 5
    for position, item in enumerate(record.items):
        sample = segment[position]
        assert sample["item_key"] == item.key
        assert sample["caption"] == ""
        np.testing.assert_array_equal(sample["video"], np.full((3, 8, 8, 3), position))
        assert segment.item_sha256(position) == item.sha256


def test_two_attempts_make_the_same_bytes_under_the_same_names(tmp_path: Path) -> None:
    stores = [FolderStore(tmp_path / name) for name in "ab"]
    first, second = (write(store) for store in stores)
    assert first == second
    for entry in first.files:
        path = f"{first.prefix}/{entry.name}"
        assert stores[0].read(path) == stores[1].read(path)


def test_nothing_is_visible_before_the_commit(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "w")
    writer = SegmentWriter(SEGMENT, "64x64x17", COLUMNS)
    writer.add(
        "a", "s", {"item_key": "a", "caption": "c", "video": np.zeros((1, 1, 1, 3), np.uint8)}
    )
    assert list(store.list("scenes")) == []
    writer.close()


def test_a_segment_whose_items_all_failed_is_an_empty_one(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "w")
    record = write(store, num_items=0)
    assert len(Segment(store, record, tmp_path / "cache")) == 0


def test_a_flipped_bit_is_found_and_its_shard_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "w"))
    record = write(store)
    shard = next(entry.name for entry in record.files if entry.name.startswith("shard"))
    file = tmp_path / "w" / record.prefix / shard
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptData, match=shard):
        Segment(store, record, tmp_path / "cache")[0]
    (fault,) = verify_workspace(store).faults
    assert f"{record.prefix}/{shard} has other bytes than were recorded" in fault


def test_what_a_killed_writer_left_in_scratch_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / "scratch" / f"hvkf-segment-{dead.pid}-abc"
    alive = tmp_path / "scratch" / f"hvkf-segment-{os.getpid()}-abc"
    for folder in (left, alive):
        folder.mkdir(parents=True)
    write(FolderStore(tmp_path / "w"))
    assert not left.exists()
    assert alive.exists()
