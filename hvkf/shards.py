"""Segments of MDS shards: written to scratch, uploaded, then recorded; read back with their hashes.

The only module that imports `streaming` (which takes seconds: planning must not come here).
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter
from streaming.base.format import reader_from_json
from streaming.base.hashing import get_hash, is_hash

from hvkf.errors import BadInput, CorruptData
from hvkf.ledger import free_prefix, put_segment
from hvkf.ledger_paths import shard_prefix
from hvkf.mds_index import (
    INDEX_NAME,
    MdsFile,
    MdsShard,
    check_stored,
    num_samples,
    parse_index,
    read_index,
)
from hvkf.records import Failure, FileEntry, ItemEntry, SegmentRecord, digest
from hvkf.scratch import make_scratch
from hvkf.storage import Store, explain_full_disk, file_sha256, into_place
from hvkf.unpacking import unpack

SHARD_LIMIT_BYTES = 64 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")
# Of numpy's and of the decoders of `streaming`, on bytes that are not what the index says.
DECODING_ERRORS = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError)

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
        prefix = free_prefix(store, shard_prefix(root, self.bucket, self.segment_id, content))
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
    written = [shard.raw_data for shard in parse_index(index.read_bytes(), str(index))]
    shards = [
        FileEntry(name=raw.basename, sha256=raw.hashes["sha256"], size=raw.bytes) for raw in written
    ]
    size = index.stat().st_size
    return [FileEntry(name=INDEX_NAME, sha256=file_sha256(index), size=size), *shards]


class _Shards:
    """The samples of an index's shards, by position; each shard is opened when first used."""

    def __init__(self, url: str, shards: tuple[MdsShard, ...]) -> None:
        self._url = url
        self._shards = shards
        self._ends = np.cumsum([shard.samples for shard in shards], dtype=np.int64)
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return num_samples(self._shards)

    def __getitem__(self, position: int) -> Sample:
        """Read a sample.

        Raises:
            CorruptData: its shard is gone, has other bytes than were recorded, or is no shard.
        """
        reader, index = self._locate(position)
        with self._explained(position):
            sample: Sample = reader.get_item(index)
        return sample

    def item_sha256(self, position: int) -> str:
        """Hash a stored sample's encoded columns anew."""
        reader, index = self._locate(position)
        with self._explained(position):
            data: bytes = reader.get_sample_data(index)
        return hashlib.sha256(data).hexdigest()

    def _locate(self, position: int) -> tuple[Any, int]:
        number = int(np.searchsorted(self._ends, position, side="right"))
        shard = self._shards[number]
        if number not in self._readers:
            self._readers[number] = self._reader(shard)
        return self._readers[number], position - int(self._ends[number]) + shard.samples

    def _reader(self, shard: MdsShard) -> Any:
        path = f"{self._url}/{shard.stored.basename}"
        try:
            folder = self._open(shard)
            _check_offsets(folder / shard.raw_data.basename, shard, path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise CorruptData(
                f"The shard {path} is missing although its index names it: copy it again."
            ) from None
        plain = {"zip_data": None, "compression": None, "size_limit": None}
        return reader_from_json(str(folder), "", {**shard.model_dump(mode="json"), **plain})

    def _open(self, shard: MdsShard) -> Path:
        """Return the folder of a shard's checked, uncompressed file on this machine."""
        raise NotImplementedError

    @contextmanager
    def _explained(self, position: int) -> Iterator[None]:
        try:
            yield
        except DECODING_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise CorruptData(
                f"Record {position} of {self._url} cannot be read ({type(error).__name__}: "
                f"{reason}): its shard is damaged; copy it again from where it was made."
            ) from error


def _check_offsets(file: Path, shard: MdsShard, path: str) -> None:
    """See that a shard's samples lie one after the other, and in its file."""
    size = 4 * (shard.samples + 2)
    with file.open("rb") as content:
        head = content.read(size)
    count, *offsets = np.frombuffer(head, np.uint32).astype(np.int64) if len(head) == size else [0]
    if (
        count != shard.samples
        or offsets[0] < size
        or np.diff(offsets).min() < max(1, shard.min_sample_bytes)
        or offsets[-1] > file.stat().st_size
    ):
        raise CorruptData(
            f"The shard {path} has samples at other places than its index says: copy it again from "
            "where it was made."
        )


class Segment(_Shards):
    """The samples of one segment, by position; shards are fetched and checked when first used."""

    def __init__(self, store: Store, record: SegmentRecord, cache: Path) -> None:
        self.record = record
        self._store = store
        self._cache = cache
        self._entries = {entry.name: entry for entry in record.files}
        path = f"{store.url}/{record.prefix}"
        super().__init__(path, parse_index(self._checked_bytes(INDEX_NAME), f"{path}/{INDEX_NAME}"))
        if num_samples(self._shards) != len(record.items):
            raise CorruptData(
                f"{path}/{INDEX_NAME} names {num_samples(self._shards)} samples where the ledger "
                f"record of segment {record.segment_id} has {len(record.items)}: {self._fix}"
            )

    @property
    def _fix(self) -> str:
        return (
            "restore it from a backup, or delete the ledger record of segment "
            f"{self.record.segment_id} and run the stage again."
        )

    def _open(self, shard: MdsShard) -> Path:
        name = shard.stored.basename
        stored = self._store.local_path(f"{self.record.prefix}/{name}")
        if stored is None or shard.zip_data is not None:
            return self._fetched(name)
        self._compare(name, file_sha256(stored))
        return stored.parent

    def _fetched(self, name: str) -> Path:
        """Bring a shard's file into the cache, which is named by content."""
        folder = self._cache / self._recorded(name)
        if not (folder / name).exists():
            data = self._checked_bytes(name)
            into_place(folder / name, lambda temporary: temporary.write_bytes(data))
        return folder

    def _checked_bytes(self, name: str) -> bytes:
        try:
            data = self._store.read(f"{self.record.prefix}/{name}")
        except FileNotFoundError:
            raise CorruptData(f"The shard {self._path(name)} is gone: {self._fix}") from None
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def _compare(self, name: str, sha256: str) -> None:
        if sha256 != self._recorded(name):
            raise CorruptData(
                f"The shard {self._path(name)} has other bytes than were recorded: {self._fix}"
            )

    def _recorded(self, name: str) -> str:
        entry = self._entries.get(name)
        if entry is None or not SHA256.fullmatch(entry.sha256):
            raise CorruptData(
                f"The ledger record of segment {self.record.segment_id} in {self._store.url} has "
                f"no sha256 of {name}: {self._fix}"
            )
        return entry.sha256

    def _path(self, name: str) -> str:
        return f"{self._store.url}/{self.record.prefix}/{name}"


class MdsFolder(_Shards):
    """A folder of MDS shards that hvkf did not write, such as the reference's caches, by position.

    Hashes are checked where the folder's index has them.

    Raises:
        BadInput: see `read_index`.
    """

    def __init__(self, folder: Store, cache: Path) -> None:
        super().__init__(folder.url, read_index(folder))
        self._folder = folder
        self._cache = cache

    def _open(self, shard: MdsShard) -> Path:
        stat = check_stored(self._folder, shard)
        raw = shard.raw_data
        local = self._folder.local_path(raw.basename)
        if shard.zip_data is None and local is not None:
            if raw.hashes:
                self._check(raw, local.read_bytes())
            return local.parent
        # The tag changes with the bytes: an old copy is never taken for the new shard.
        place = self._cache / digest([self._folder.url, stat.tag, shard.model_dump(mode="json")])
        if not (place / raw.basename).exists():
            into_place(place / raw.basename, lambda file: self._bring(shard, file))
        return place

    def _bring(self, shard: MdsShard, file: Path) -> None:
        """Write a shard's uncompressed bytes to a file: as many as its index says, or none."""
        stored = shard.stored
        data = self._folder.read(stored.basename)
        self._check(stored, data)
        if shard.compression is None:
            file.write_bytes(data)
            return
        path = f"{self._folder.url}/{stored.basename}"
        unpack(data, shard.compression, shard.raw_data.bytes, file, path)

    def _check(self, stored: MdsFile, data: bytes) -> None:
        path = f"{self._folder.url}/{stored.basename}"
        for algorithm, expected in stored.hashes.items():
            if not is_hash(algorithm):
                raise BadInput(
                    f"The index of {path} names the hash {algorithm!r}, which nobody knows: copy "
                    "the folder again from where it was made."
                )
            if get_hash(algorithm, data) != expected:
                raise CorruptData(
                    f"The shard {path} has another {algorithm} hash than its index says: copy it "
                    "again from where it was made."
                )
