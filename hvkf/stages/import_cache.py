"""Import: from caches that the reference's tools made to scenes or latents of a data set.

Reads MDS folders; writes segments, a catalog and a commit where `hvkf encode` or `hvkf train` with
the same configuration look for them. What is committed stays: importing again adds what is new.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from hvkf import catalog, ledger
from hvkf.config import Config
from hvkf.errors import BadInput, TryAgain
from hvkf.lossless_video import pack_frames
from hvkf.model.latent_columns import whole_columns
from hvkf.progress import Progress, progress
from hvkf.records import Clip, DatasetCommit, Failure, SegmentRecord, Summary, digest
from hvkf.shards import Sample, SegmentWriter
from hvkf.stages.cache import SCENES_ROOT
from hvkf.stages.cache_group import COLUMNS as SCENE_COLUMNS
from hvkf.stages.encode import latents_root
from hvkf.stages.reference_cache import (
    LATENT_COLUMNS,
    MASK_COLUMN,
    CacheFolder,
    Kind,
    RecordFault,
    Repeats,
    Taken,
    find_folders,
    read_records,
)
from hvkf.storage import Store

STAGE = "import-cache"
# The reference records none; HunyuanVideo's own.
FPS = 24.0
NUM_SHOWN = 10


def import_caches(
    config: Config, store: Store, folders: Sequence[str], same_within: float
) -> Summary:
    """Import MDS folders of the reference into `config.ingest.dataset`.

    Args:
        config: What `hvkf train` (for latents) or `hvkf encode` (for videos) will be given: its
            settings say where these look.
        store: The workspace.
        folders: MDS folders, or folders of such.
        same_within: Records of one bucket with the same text are repeats when their latents differ
            by less than this share; 0 keeps all but those that are equal bit by bit.

    Raises:
        BadInput: no MDS folders, or the data set was made in another way.
        CorruptData: a shard is missing, cut short or damaged.
    """
    found = find_folders(folders)
    importer = _Importer(config, store, found[0].kind, same_within)
    with progress(STAGE, sum(folder.num_records for folder in found)) as shown:
        for _, group in groupby(found, key=lambda folder: folder.bucket or folder.url):
            importer.take(list(group), shown)
    return importer.commit()


class _Importer:
    """Collects records into segments, and what is said of the rest."""

    def __init__(self, config: Config, store: Store, kind: Kind, same_within: float) -> None:
        self._config = config
        self._store = store
        self._kind = kind
        self._same_within = same_within
        self._root = latents_root(config, store) if kind == "latents" else SCENES_ROOT
        self._dataset = config.ingest.dataset
        self._previous = self._read_previous()
        self._known = set(self._previous_keys())
        self._segments: list[SegmentRecord] = []
        self._clips: list[Clip] = []
        self._repeats: list[str] = []
        self._failures: list[Failure] = []
        self._num_taken = 0

    def _read_previous(self) -> DatasetCommit | None:
        previous = ledger.latest_dataset(self._store, self._root, self._dataset)
        self._refuse_foreign(previous)
        return previous

    def _refuse_foreign(self, previous: DatasetCommit | None) -> None:
        if previous is not None and previous.plan != _plan_of(previous.segments):
            raise BadInput(
                f"The data set {self._dataset!r} in {self._store.url} was made from videos by hvkf "
                "itself: give --dataset another name."
            )

    def _records(self, segments: Sequence[str]) -> Iterator[SegmentRecord]:
        return (ledger.read_segment(self._store, self._root, segment) for segment in segments)

    def _previous_keys(self) -> Iterator[str]:
        for record in self._records(self._previous.segments if self._previous else ()):
            yield from (item.key for item in record.items)

    def take(self, folders: Sequence[CacheFolder], shown: Progress) -> None:
        """Import the folders of one bucket."""
        repeats = Repeats(self._same_within)
        gathered: list[Taken] = []
        failures: list[Failure] = []
        size = 0
        for folder in folders:
            for record in read_records(folder):
                shown.advance(note=folder.name)
                if isinstance(record, RecordFault):
                    failure = Failure(code=record.code, message=str(record), source=folder.url)
                    failures.append(failure)
                    continue
                earlier = repeats.origin_of(record)
                if earlier is not None:
                    self._repeats.append(f"{record.origin} repeats {earlier}")
                elif record.key not in self._known:
                    gathered.append(record)
                    size += record.num_bytes
                if size > self._config.cache.segment_mb << 20:
                    self._flush(gathered, failures)
                    gathered, failures, size = [], [], 0
        self._flush(gathered, failures)

    def _flush(self, records: Sequence[Taken], failures: Sequence[Failure]) -> None:
        """Store records as segments; where one is there already, an import was cut off."""
        self._failures += failures
        self._num_taken += len(records)
        self._clips += [_clip(record) for record in records]
        by_bucket: dict[str, list[Taken]] = {}
        for record in records:
            by_bucket.setdefault(str(record.bucket), []).append(record)
        for bucket, members in by_bucket.items():
            segment_id = digest([STAGE, self._kind, bucket, [record.key for record in members]])
            if ledger.missing_segments(self._store, self._root, [segment_id]):
                self._write(segment_id, bucket, members, failures)
                failures = ()
            self._segments += ledger.read_new_segments(self._store, self._root, [segment_id])

    def _write(
        self, segment_id: str, bucket: str, records: Sequence[Taken], failures: Sequence[Failure]
    ) -> None:
        columns = dict(SCENE_COLUMNS)
        is_bf16 = all(_fits_bf16(record) for record in records)
        if self._kind == "latents":
            columns = whole_columns("bf16" if is_bf16 else "fp32")
        writer = SegmentWriter(segment_id, bucket, columns)
        try:
            for record in records:
                arrays = _latent_sample(record, is_bf16) if self._kind == "latents" else None
                writer.add(record.key, record.sha256, arrays or _scene_sample(record))
            for failure in failures:
                writer.add_failure(failure)
            writer.commit(self._store, self._root, ledger.attempt_name())
        finally:
            writer.close()

    def commit(self) -> Summary:
        """Record the data set's new state, and say what came in and what did not."""
        num_seen = self._num_taken + len(self._failures)
        setting = "encode.max_failed_fraction"
        limit = self._config.encode.max_failed_fraction
        ledger.check_failures(self._failures, num_seen + len(self._known), limit, setting)
        if not self._segments and self._previous is not None:
            folder = ledger.dataset_folder(self._root, self._dataset)
            path = ledger.commit_path(folder, self._previous.number)
            return self._summary(self._previous, path, reused=True)
        done = ledger.commit_dataset(self._store, self._root, self._dataset, self._draft)
        return self._summary(done.commit, done.path, reused=not done.is_new)

    def _draft(self, previous: DatasetCommit | None) -> DatasetCommit:
        """Add what came in to what is committed.

        Raises:
            TryAgain: another import came in between and took some of the same records.
        """
        self._refuse_foreign(previous)
        before = previous.segments if previous is not None else ()
        mine = [record for record in self._segments if record.segment_id not in before]
        if previous is not None and not mine:
            return previous
        known = {item.key for record in self._records(before) for item in record.items}
        new = [item.key for record in mine for item in record.items]
        if not known.isdisjoint(new):
            raise TryAgain(
                f"Another import into {self._dataset!r} took some of the same records meanwhile: "
                "run the same command again, which adds what is missing."
            )
        segments = (*before, *(record.segment_id for record in mine))
        catalog_path = self._put_catalog(previous)
        return DatasetCommit(
            dataset=self._dataset,
            number=0,
            plan=_plan_of(segments),
            catalog=catalog_path,
            catalog_sha256=catalog.hash_catalog(self._store, catalog_path),
            segments=segments,
            masked=previous.masked if previous is not None else (),
            num_items=len(known) + len(new),
            num_failed=len(self._failures),
        )

    def _put_catalog(self, previous: DatasetCommit | None) -> str:
        clips = list(self._clips)
        if previous is not None:
            clips = [*catalog.read_clips(self._store, previous.catalog), *clips]
        content = digest([clip.model_dump(mode="json") for clip in clips])
        path = f"datasets/{self._dataset}/{content}/catalog.parquet"
        self._store.put(path, catalog.to_parquet(clips))
        return path

    def _summary(self, commit: DatasetCommit, path: str, *, reused: bool) -> Summary:
        what = "samples" if self._kind == "latents" else "scenes"
        stage = "train" if self._kind == "latents" else "encode"
        lines = [f"{commit.num_items} {what} in data set {self._dataset!r}, {self._num_taken} new"]
        counts: dict[str, int] = {}
        for record in self._segments:
            counts[record.bucket] = counts.get(record.bucket, 0) + len(record.items)
        lines += [f"{bucket}: {count} new" for bucket, count in sorted(counts.items())]
        lines += _shown(self._repeats, "dropped")
        lines += _shown([f"{fault.message} [{fault.code}]" for fault in self._failures], "left out")
        lines.append(f"next: hvkf {stage}, the same settings, --ingest.dataset={self._dataset}")
        if stage == "train":
            lines[-1] += ", data.local left empty"
        return Summary(
            stage=STAGE,
            result=path,
            reused=reused,
            text="\n".join(lines),
            counts={
                "items": commit.num_items,
                "new": self._num_taken,
                "repeats": len(self._repeats),
                "failed": len(self._failures),
            },
        )


def _plan_of(segments: Sequence[str]) -> str:
    """Name the work of an imported commit, so that it can be told from one of `hvkf encode`."""
    return digest([STAGE, list(segments)])


def _shown(entries: Sequence[str], label: str) -> list[str]:
    more = [f"{label}: and {len(entries) - NUM_SHOWN} more"] if len(entries) > NUM_SHOWN else []
    return [f"{label}: {entry}" for entry in entries[:NUM_SHOWN]] + more


def _fits_bf16(record: Taken) -> bool:
    """Whether bfloat16 holds the record's values exactly: the reference casts them to float32."""
    arrays = [record.columns[name] for name in LATENT_COLUMNS if name in record.columns]
    return all(not (_bits(array) & 0xFFFF).any() for array in arrays)


def _bits(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32)


def _latent_sample(record: Taken, is_bf16: bool) -> Sample:
    arrays: Sample = {name: record.columns[name] for name in LATENT_COLUMNS}
    if is_bf16:
        arrays = {name: (_bits(array) >> 16).astype(np.uint16) for name, array in arrays.items()}
    return {**_texts(record), **arrays, MASK_COLUMN: record.columns[MASK_COLUMN]}


def _scene_sample(record: Taken) -> Sample:
    bucket, (width, height) = record.bucket, record.original_size
    return {
        **_texts(record),
        "start": 0,
        "end": bucket.num_frames,
        "window": 0,
        "fps": FPS,
        "num_frames": bucket.num_frames,
        "bucket_width": bucket.width,
        "bucket_height": bucket.height,
        "original_width": width,
        "original_height": height,
        "video": pack_frames(record.columns["video"]),
    }


def _texts(record: Taken) -> Sample:
    return {
        "item_key": record.key,
        "clip_id": record.key,
        "source": record.source,
        "caption": record.caption,
    }


def _clip(record: Taken) -> Clip:
    bucket, (width, height) = record.bucket, record.original_size
    return Clip(
        clip_id=record.key,
        source=record.source,
        source_sha256=record.sha256,
        caption=record.caption,
        start=0,
        end=bucket.num_frames,
        source_frames=bucket.num_frames,
        source_fps=FPS,
        num_frames=bucket.num_frames,
        fps=FPS,
        width=width,
        height=height,
        duration_s=bucket.num_frames / FPS,
        split="train",
    )
