"""What each kind of record says of other objects: which there are, and which bytes they have."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import singledispatch
from typing import NamedTuple

from hvkf import ledger, registry
from hvkf.catalog import commits_folder
from hvkf.crashes import CrashNote
from hvkf.errors import CorruptData
from hvkf.journal import JournalEntry, entry_path
from hvkf.ledger_paths import segment_path
from hvkf.nightly import NightRecord, night_path
from hvkf.records import (
    CatalogCommit,
    CheckpointRecord,
    DatasetCommit,
    FileEntry,
    Plan,
    Record,
    RunRecord,
    SegmentRecord,
    TrainResult,
    digest,
    plan_path,
)
from hvkf.registry import Registered
from hvkf.stages.evaluate_gate import DECISIONS, Decision
from hvkf.stages.evaluate_records import Metrics, PairRecord
from hvkf.stages.ingest import Ingested, ScanRecord
from hvkf.stages.render_claims import ClaimRecord
from hvkf.stages.render_cost import Quote, Timing
from hvkf.stages.render_records import ManifestRecord, RenderRecord, record_path, render_folder
from hvkf.storage import Store
from hvkf.stored import open_parquet, read_record, refuse_object
from hvkf.sweeps import Sweep
from hvkf.training.cost import TrainTiming
from hvkf.training.lineage import TrainedOn
from hvkf.training.losses import NAME as LOSSES_NAME
from hvkf.training.runs import COMMIT_NAME, result_path, run_folder, step_name
from hvkf.uses import PlanUse, WorkUse

RECORDS: dict[str, type[Record]] = {
    "journal entries": JournalEntry,
    "catalog commits": CatalogCommit,
    "video scans": ScanRecord,
    "ingested videos": Ingested,
    "scene commits": DatasetCommit,
    "scene segments": SegmentRecord,
    "latent commits": DatasetCommit,
    "latent segments": SegmentRecord,
    "run records": RunRecord,
    "run results": TrainResult,
    "training videos": TrainedOn,
    "checkpoint records": CheckpointRecord,
    "metrics": Metrics,
    "pair records": PairRecord,
    "decisions": Decision,
    "kept runs": RunRecord,
    "registered names": Registered,
    "nights": NightRecord,
    "plans": Plan,
    "manifest records": ManifestRecord,
    "quotes": Quote,
    "render records": RenderRecord,
    "claims": ClaimRecord,
    "timings": Timing,
    "training times": TrainTiming,
    "crashes": CrashNote,
    "deletions": Sweep,
    "leases": WorkUse,
    "open plans": PlanUse,
}


class Claim(NamedTuple):
    """What the record `by` says of an object: it is there, and perhaps what its bytes are.

    `sha256` is of all of it; `losses_sha256` of its first `num_lines` lines.
    """

    path: str
    by: str
    sha256: str | None = None
    num_lines: int = 0
    losses_sha256: str | None = None


def read_checked(store: Store, path: str, kind: type[Record]) -> Record:
    """Read a record, and check that it is the one that belongs at its path.

    Raises:
        CorruptData: it does not read, or belongs elsewhere.
    """
    record = read_record(store, path, kind)
    own = _own_path(record, path)
    if own != path:
        refuse_object(store, path, f"it is the record of {own}")
    return record


def _own_path(record: Record, path: str) -> str:
    """Say where a record belongs by its content; its own path where that does not tell."""
    root, _, _ = path.partition("/commits/")
    folder = path.rpartition("/")[0]
    places: dict[type[Record], Callable[..., str]] = {
        JournalEntry: lambda entry: entry_path(entry.path),
        CatalogCommit: lambda commit: ledger.commit_path(
            commits_folder(commit.dataset), commit.number
        ),
        DatasetCommit: lambda commit: ledger.commit_path(
            ledger.dataset_folder(root, commit.dataset), commit.number
        ),
        SegmentRecord: lambda segment: f"{folder}/{segment.segment_id}.json",
        TrainResult: lambda result: result_path(result.run_id),
        CheckpointRecord: lambda record: (
            f"{folder.rpartition('/')[0]}/{step_name(record.step)}/{COMMIT_NAME}"
        ),
        PairRecord: lambda pair: f"{folder}/{pair.key}.json",
        Decision: lambda decision: f"{DECISIONS}/{digest(decision.model_dump(mode='json'))}.json",
        Registered: lambda registered: registry.registry_path(registered.name),
        NightRecord: lambda night: night_path(night.name, night.number),
        Plan: lambda plan: plan.path,
        RenderRecord: lambda rendered: record_path(rendered.identity),
    }
    place = places.get(type(record))
    return path if place is None else place(record)


def _files(by: str, folder: str, entries: Iterable[FileEntry]) -> Iterator[Claim]:
    for entry in entries:
        yield Claim(f"{folder}/{entry.name}", by, entry.sha256)


@singledispatch
def claims_of(record: Record, store: Store, path: str) -> Iterator[Claim]:
    """Yield what a record says of other objects; most say nothing.

    Args:
        record: The record.
        store: The workspace.
        path: Where the record lies.
    """
    yield from ()


@claims_of.register
def _(record: JournalEntry, store: Store, path: str) -> Iterator[Claim]:
    yield Claim(record.path, path)


@claims_of.register
def _(record: PlanUse, store: Store, path: str) -> Iterator[Claim]:
    if time.time() >= record.until_s:  # a plan that nobody committed for a week is given up
        return
    plan = plan_path(record.stage, record.digest)
    yield Claim(plan, path)
    # That the plan is damaged or gone is told of the plan itself.
    with contextlib.suppress(CorruptData, FileNotFoundError):
        parts = read_record(store, plan, Plan).parts if record.stage == "render" else ()
        yield from (Claim(rows, plan) for rows in {str(part.work["rows"]) for part in parts})


@claims_of.register
def _(record: CatalogCommit, store: Store, path: str) -> Iterator[Claim]:
    yield Claim(record.catalog, path)
    yield Claim(record.videos, path)
    yield from _files(path, record.catalog.rpartition("/")[0], record.files)


@claims_of.register
def _(record: DatasetCommit, store: Store, path: str) -> Iterator[Claim]:
    root = path.partition("/commits/")[0]
    if record.segments:  # the first commit of all says only that others follow
        yield Claim(record.catalog, path, record.catalog_sha256)
    for segment in record.segments:
        yield Claim(segment_path(root, segment), path)


@claims_of.register
def _(record: SegmentRecord, store: Store, path: str) -> Iterator[Claim]:
    yield from _files(path, record.prefix, record.files)


@claims_of.register
def _(record: CheckpointRecord, store: Store, path: str) -> Iterator[Claim]:
    folder = path.rpartition("/")[0]
    yield from _files(path, folder, record.files)
    if record.losses_sha256 is not None:
        losses = f"{folder.rpartition('/')[0]}/{LOSSES_NAME}"
        yield Claim(losses, path, None, record.step, record.losses_sha256)


@claims_of.register
def _(record: TrainResult, store: Store, path: str) -> Iterator[Claim]:
    yield Claim(f"{run_folder(record.run_id)}/{LOSSES_NAME}", path)
    yield Claim(f"{record.checkpoint}/{COMMIT_NAME}", path)
    yield Claim(record.lora, path)


@claims_of.register
def _(record: Metrics, store: Store, path: str) -> Iterator[Claim]:
    yield from _files(path, path.rpartition("/")[0], record.files)
    for pair in record.pairs:
        for file in pair.files.values():
            root, _, rest = file.partition("/media/")
            yield Claim(file, path)
            yield Claim(f"{root}/pairs/{rest.partition('/')[0]}.json", path)


@claims_of.register
def _(record: PairRecord, store: Store, path: str) -> Iterator[Claim]:
    yield from _files(path, f"{path.partition('/pairs/')[0]}/media/{record.key}", record.files)


@claims_of.register
def _(record: Registered, store: Store, path: str) -> Iterator[Claim]:
    for version in record.history:
        yield Claim(version.lora, path, version.lora_sha256)
        yield from _files(path, registry.lora_folder(version.lora_sha256), version.files)


@claims_of.register
def _(record: RenderRecord, store: Store, path: str) -> Iterator[Claim]:
    yield from _files(path, render_folder(record.identity), record.files)


@claims_of.register
def _(record: ManifestRecord, store: Store, path: str) -> Iterator[Claim]:
    yield Claim(record.results, path)
    yield Claim(record.gallery, path)
    yield from _files(path, path.rpartition("/")[0], record.files)
    # That the table is damaged or gone is told of the table itself.
    with contextlib.suppress(CorruptData, FileNotFoundError):
        for identity in _identities(store, record.results):
            yield Claim(record_path(identity), record.results)


def _identities(store: Store, results: str) -> Iterator[str]:
    with open_parquet(store, results) as table:
        for group in range(table.num_row_groups):
            rows = table.read_row_group(group, ["identity", "tries"], use_threads=False)
            for row in rows.to_pylist():
                yield from {row["identity"], *row["tries"].split()} - {""}
