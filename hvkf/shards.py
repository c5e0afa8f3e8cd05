"""Segments of MDS shards: written to scratch, uploaded, then recorded; read back with their hashes.

The only module that imports `streaming` (which takes seconds: planning must not come here).
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter
from streaming.base.compression import decompress
from streaming.base.format import reader_from_json
from streaming.base.hashing import get_hash

from hvkf.errors import CorruptData
from hvkf.ledger import put_segment
from hvkf.records import Failure, FileEntry, ItemEntry, SegmentRecord, digest
from hvkf.scratch import make_scratch
from hvkf.storage import Store, explain_full_disk, file_sha256

SHARD_LIMIT_BYTES = 64 << 20
INDEX_NAME = "index.json"

Sample = dict[str, Any]
BFLOAT16_COLUMN = "ndarray:uint16"


class _HashingWriter(MDSWriter):
    """Remembers the sha256 of each sample's encoded columns as they are written."""

    def __init__(self, **kwargs: Any) -> None:
        self.item_sha256: list[str] = []
        self.num_bytes = 0
        super().__init__(**kwargs)

    def encode_sample(self, sample: Sample) -> bytes:
        data: bytes = super().encode_sample(sample)
        self.num_bytes += len(data)
        self.item_sha256.append(hashlib.sha256(data).hexdigest())
        return data


class SegmentWriter:
    """Collects one segment's samples in scratch; nothing is visible until `commit`."""

    def __init__(self, segment_id: str, bucket: str, columns: dict[str, str]) -> None:
        self.segment_id = segment_id
        self.bucket = bucket
        self._folder = make_scratch("segment")
        self._items: list[tuple[str, str]] = []
        self._failures: list[Failure] = []
        self._writer = _HashingWriter(
            out=str(self._folder / "mds"),
            columns=columns,
            hashes=["sha256"],
            size_limit=SHARD_LIMIT_BYTES,
        )

    @property
    def num_bytes(self) -> int:
        """Size of the samples so far, encoded."""
        return self._writer.num_bytes

    def add(self, key: str, source_sha256: str, sample: Sample) -> None:
        """Append a sample; the order of calls is the order in the shards."""
        with explain_full_disk(self._folder):
            self._writer.write(sample)
        self._items.append((key, source_sha256))

    def add_failure(self, failure: Failure) -> None:
        """Record an item that could not be made."""
        self._failures.append(failure)

    def commit(self, store: Store, root: str, attempt: str) -> SegmentRecord:
        """Upload the shards under a prefix named by their content, then put the ledger record."""
        with explain_full_disk(self._folder):
            self._writer.finish()
        folder = self._folder / "mds"
        files = _file_entries(folder)
        content = digest([[entry.name, entry.sha256] for entry in files])
        prefix = f"{root}/{self.bucket}/{self.segment_id[:12]}-{content[:12]}"
        for entry in files:
            store.take(folder / entry.name, f"{prefix}/{entry.name}")
        record = SegmentRecord(
            segment_id=self.segment_id,
            bucket=self.bucket,
            prefix=prefix,
            items=tuple(
                ItemEntry(key=key, source_sha256=source, sha256=sha256)
                for (key, source), sha256 in zip(self._items, self._writer.item_sha256, strict=True)
            ),
            files=tuple(files),
            failures=tuple(self._failures),
            attempt=attempt,
        )
        return put_segment(store, root, record)

    def close(self) -> None:
        """Drop the scratch files, whether or not they were committed."""
        self._writer.executor.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _file_entries(folder: Path) -> list[FileEntry]:
    """List what was written; the writer hashed each shard on its way, so only the index is read."""
    index = folder / INDEX_NAME
    written = [shard["raw_data"] for shard in json.loads(index.read_bytes())["shards"]]
    shards = [
        FileEntry(name=raw["basename"], sha256=raw["hashes"]["sha256"], size=raw["bytes"])
        for raw in written
    ]
    size = index.stat().st_size
    return [FileEntry(name=INDEX_NAME, sha256=file_sha256(index), size=size), *shards]


class Segment:
    """The samples of one segment, by position; shards are fetched and checked when first used."""

    def __init__(self, store: Store, record: SegmentRecord, cache: Path) -> None:
        self.record = record
        self._store = store
        self._cache = cache
        self._entries = {entry.name: entry for entry in record.files}
        index = json.loads(self._checked_bytes(INDEX_NAME))
        self._shards = index["shards"]
        self._ends = np.cumsum([shard["samples"] for shard in self._shards])
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.record.items)

    def __getitem__(self, position: int) -> Sample:
        reader, index = self._locate(position)
        sample: Sample = reader.get_item(index)
        return sample

    def item_sha256(self, position: int) -> str:
        """Hash a stored sample's encoded columns anew."""
        reader, index = self._locate(position)
        return hashlib.sha256(reader.get_sample_data(index)).hexdigest()

    def _locate(self, position: int) -> tuple[Any, int]:
        shard = int(np.searchsorted(self._ends, position, side="right"))
        if shard not in self._readers:
            self._readers[shard] = self._open(self._shards[shard])
        return self._readers[shard], position - int(
            self._ends[shard] - self._shards[shard]["samples"]
        )

    def _open(self, shard: dict[str, Any]) -> Any:
        name = shard["raw_data"]["basename"]
        stored = self._store.local_path(f"{self.record.prefix}/{name}")
        if stored is None:
            folder = self._fetched(name)
        else:
            self._check(name, stored)
            folder = stored.parent
        return reader_from_json(str(folder), "", shard)

    def _fetched(self, name: str) -> Path:
        """Bring a shard's file into the cache, which is named by content."""
        folder = self._cache / self._entries[name].sha256
        if not (folder / name).exists():
            data = self._checked_bytes(name)
            with explain_full_disk(self._cache):
                folder.mkdir(parents=True, exist_ok=True)
                temporary = folder / f".{os.getpid()}"
                temporary.write_bytes(data)
                temporary.replace(folder / name)
        return folder

    def _check(self, name: str, file: Path) -> None:
        self._compare(name, file_sha256(file))

    def _checked_bytes(self, name: str) -> bytes:
        data = self._store.read(f"{self.record.prefix}/{name}")
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def _compare(self, name: str, sha256: str) -> None:
        if sha256 != self._entries[name].sha256:
            raise CorruptData(
                f"The shard {self._store.url}/{self.record.prefix}/{name} has other bytes than "
                "were recorded: restore it from a backup, or delete "
                f"the ledger record of segment {self.record.segment_id} and run the stage again."
            )


class MdsFolder:
    """A folder of MDS shards that hvkf did not write, such as the reference's caches, by position.

    Hashes are checked where the folder's index has them.
    """

    def __init__(self, folder: Store, cache: Path) -> None:
        self._folder = folder
        self._cache = cache
        self._shards = json.loads(folder.read(INDEX_NAME))["shards"]
        self._ends = np.cumsum([shard["samples"] for shard in self._shards])
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._shards else 0

    def __getitem__(self, position: int) -> Sample:
        number = int(np.searchsorted(self._ends, position, side="right"))
        shard = self._shards[number]
        if number not in self._readers:
            self._readers[number] = self._open(shard)
        sample: Sample = self._readers[number].get_item(
            position - int(self._ends[number]) + shard["samples"]
        )
        return sample

    def _open(self, shard: dict[str, Any]) -> Any:
        raw_name, packed = shard["raw_data"]["basename"], shard["zip_data"]
        local = self._folder.local_path(raw_name)
        if packed is None and local is not None:
            if shard["raw_data"]["hashes"]:
                self._check(shard["raw_data"], local.read_bytes())
            place = local.parent
        else:
            stored_name = (packed or shard["raw_data"])["basename"]
            # The tag changes with the bytes: an old copy is never taken for the new shard.
            tag = self._folder.stat(stored_name).tag
            place = self._cache / digest([self._folder.url, tag, shard])
            if not (place / raw_name).exists():
                self._unpack(shard, place, raw_name)
        return reader_from_json(str(place), "", {**shard, "zip_data": None, "compression": None})

    def _unpack(self, shard: dict[str, Any], place: Path, raw_name: str) -> None:
        stored = shard["zip_data"] or shard["raw_data"]
        data = self._folder.read(stored["basename"])
        self._check(stored, data)
        with explain_full_disk(self._cache):
            place.mkdir(parents=True, exist_ok=True)
            temporary = place / f".{os.getpid()}"
            temporary.write_bytes(
                decompress(shard["compression"], data) if shard["zip_data"] else data
            )
            temporary.replace(place / raw_name)

    def _check(self, stored: dict[str, Any], data: bytes) -> None:
        for algorithm, expected in stored["hashes"].items():
            if get_hash(algorithm, data) != expected:
                raise CorruptData(
                    f"The shard {self._folder.url}/{stored['basename']} has another {algorithm} "
                    "hash than its index says: copy it again from where it was made."
                )
