"""Ingest: from a table of videos and captions to a catalog of clips, and a report on the rest.

Reads the metadata table and the videos beside it; writes `datasets/<name>/<digest>/`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hvkf import catalog, ledger
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.media.timing import SLOWEST_RESAMPLED
from hvkf.progress import progress
from hvkf.records import (
    CatalogCommit,
    Clip,
    Failure,
    FileEntry,
    Part,
    Plan,
    Record,
    Summary,
    digest,
)
from hvkf.settings.data import IngestConfig
from hvkf.shown import counted
from hvkf.stages.ingest_clips import clips_of
from hvkf.stages.ingest_records import VideoScan, VideoTask
from hvkf.stages.ingest_sources import (
    UNREADABLE,
    check_pods_see_sources,
    open_sources,
    source_folder,
    source_stat,
)
from hvkf.stages.ingest_splits import decide_splits
from hvkf.storage import Store, object_sha256
from hvkf.stored import put_file, read_named
from hvkf.table_files import read_file
from hvkf.tables import TableRow, parse_table

STAGE = "ingest"
STAGE_VERSION = 2
VIDEOS_PER_PART = 32


class ScanRecord(Record):
    """What one part of ingest found."""

    scans: tuple[VideoScan, ...]


class Ingested(Record):
    """What a commit of ingest remembers beside the catalog, so that the next looks only at news."""

    scans: tuple[VideoScan, ...]
    splits: dict[str, str]


def _read_rows(config: IngestConfig) -> list[TableRow]:
    data = read_file(
        config.metadata,
        f"There is no table {config.metadata!r}: set ingest.metadata to a CSV, JSON, JSONL or "
        "Parquet file with a column of video paths and one of captions.",
    )
    return parse_table(
        data,
        config.metadata,
        video_column=config.video_column,
        caption_column=config.caption_column,
    )


def _scan_settings(config: IngestConfig) -> str:
    return digest(
        [
            STAGE_VERSION,
            config.scene_split,
            config.scene_threshold,
            config.min_scene_frames,
            config.find_near_duplicates,
            config.interlaced,
            config.hdr,
        ]
    )


def _tasks(rows: Iterable[TableRow], sources: Store) -> list[VideoTask]:
    tasks = []
    for source in sorted({row.video for row in rows}):
        size, tag = source_stat(sources, source)
        tasks.append(VideoTask(source=source, size=size, tag=tag))
    return tasks


def _previous(store: Store, dataset: str) -> tuple[CatalogCommit | None, Ingested]:
    commit = ledger.latest_commit(store, catalog.commits_folder(dataset), CatalogCommit)
    if commit is None:
        return None, Ingested(scans=(), splits={})
    return commit, read_named(store, commit.videos, Ingested)


def plan(config: Config, store: Store) -> Plan:
    """Find the videos that are new or changed, and share them out."""
    ingest = config.ingest
    rows = _read_rows(ingest)
    tasks = _tasks(rows, open_sources(ingest))
    settings = _scan_settings(ingest)
    commit, previous = _previous(store, ingest.dataset)
    known = {scan.task: scan for scan in previous.scans if scan.settings == settings}
    again = {task for task, scan in known.items() if _may_pass(scan)}
    new = [task for task in tasks if task not in known or task in again]
    # Looked at again under another name than last time: what is recorded stays.
    attempt = commit.number if commit is not None and not again.isdisjoint(new) else 0
    if new:
        check_pods_see_sources(config, STAGE)
    work: dict[str, Any] = {
        "dataset": ingest.dataset,
        "sources": source_folder(ingest),
        "settings": settings,
        "clips": [ingest.target_fps, ingest.holdout_fraction, ingest.min_holdout],
        "rows": digest([[row.video, row.caption] for row in rows]),
        "tasks": digest([task.model_dump() for task in tasks]),
    }
    if attempt:
        work["attempt"] = attempt
    plan_digest = digest(work)
    parts: list[Part] = []
    for begin in range(0, len(new), VIDEOS_PER_PART):
        chunk = [task.model_dump() for task in new[begin : begin + VIDEOS_PER_PART]]
        names = [settings, chunk, attempt] if attempt else [settings, chunk]
        output = f"datasets/{ingest.dataset}/scans/{digest(names)}.json"
        parts.append(Part(index=len(parts), outputs=(output,), work={"tasks": chunk}))
    return Plan(
        stage=STAGE,
        digest=plan_digest,
        config=config.model_dump(mode="json"),
        inputs=work,
        parts=tuple(parts),
    )


def _may_pass(scan: VideoScan) -> bool:
    """Say whether a failure is of the disk or the system today, and not of the file."""
    return scan.failure is not None and scan.failure.code == UNREADABLE


def run(plan: Plan, store: Store, parts: Sequence[Part]) -> None:
    """Hash and probe the parts' videos, and find their scenes."""
    config = Config.model_validate(plan.config).ingest
    sources = open_sources(config)
    settings = _scan_settings(config)
    from hvkf.stages.ingest_scan import scan_video  # PyAV and OpenCV: planning needs neither

    with progress(STAGE, sum(len(part.work["tasks"]) for part in parts)) as shown:
        for part in parts:
            scans = []
            for task in map(VideoTask.model_validate, part.work["tasks"]):
                scan = scan_video(task, settings, config, sources)
                scans.append(scan)
                shown.advance(note=task.source, failed=int(scan.failure is not None))
            store.put(part.outputs[0], ScanRecord(scans=tuple(scans)).to_json())


def commit(plan: Plan, store: Store) -> Summary:
    """Assemble the catalog of what was found, with the report on what was not taken.

    When another ingest of the data set commits meanwhile, it is assembled on top of that one: what
    videos were held out for stays, and the newest table is the data set.
    """
    dataset = str(plan.inputs["dataset"])
    return ledger.on_conflict_again(lambda: _commit(plan, store), f"data set {dataset!r}")


def _commit(plan: Plan, store: Store) -> Summary:
    config = Config.model_validate(plan.config)
    ingest = config.ingest
    previous_commit, previous = _previous(store, ingest.dataset)
    scans = {scan.task: scan for scan in previous.scans}
    for part in plan.parts:
        for scan in read_named(store, part.outputs[0], ScanRecord).scans:
            scans[scan.task] = scan
    settings = _scan_settings(ingest)
    rows = _read_rows(ingest)
    by_source = {scan.task.source: scan for scan in scans.values() if scan.settings == settings}
    tasks = _tasks(rows, open_sources(ingest))
    current = {task.source: scans.get(task, by_source.get(task.source)) for task in tasks}
    taken, failures = _take(rows, current, ingest.target_fps)
    ledger.check_failures(
        failures, len(rows), ingest.max_failed_fraction, "ingest.max_failed_fraction"
    )
    hashes = {scan.sha256: scan.perceptual_hash for _, scan in taken}
    splits, between = decide_splits(hashes, previous.splits, ingest)
    failures += [
        Failure(
            code="near-duplicate",
            message="it shows the same as a training video and as a held-out one",
            source=row.video,
        )
        for row, scan in taken
        if scan.sha256 in between
    ]
    taken = [(row, scan) for row, scan in taken if scan.sha256 not in between]
    clips = [
        clip
        for row, scan in taken
        for clip in clips_of(row, scan, splits[scan.sha256], ingest.target_fps)
    ]
    if not clips:
        reasons = ledger.first_failures(failures) or "the table has no rows"
        raise BadInput(f"{ingest.metadata}: not one video can be used: {reasons}.")
    kept = tuple(scan for _, scan in sorted(current.items()) if scan is not None)
    return _put(
        store,
        ingest,
        clips,
        failures,
        {row.video: scan for row, scan in taken if scan.notes},
        Ingested(scans=kept, splits=splits),
        previous_commit,
    )


def _take(
    rows: Sequence[TableRow], scans: dict[str, VideoScan | None], target_fps: float | None
) -> tuple[list[tuple[TableRow, VideoScan]], list[Failure]]:
    """Choose the rows that become clips: readable, and each content once."""
    taken: list[tuple[TableRow, VideoScan]] = []
    failures: list[Failure] = []
    first_row: dict[str, TableRow] = {}
    for row in rows:
        scan = scans[row.video]
        if scan is None:
            failures.append(
                Failure(code="not-scanned", message="it changed meanwhile", source=row.video)
            )
        elif scan.failure is not None:
            failures.append(scan.failure)
        elif target_fps is not None and scan.fps < SLOWEST_RESAMPLED:
            message = f"its frames are {1 / scan.fps:.3g} s apart, too slow for ingest.target_fps"
            failures.append(Failure(code="too-slow", message=message, source=row.video))
        elif scan.sha256 in first_row:
            message = f"row {row.row} has the content of {first_row[scan.sha256].video}"
            failures.append(Failure(code="duplicate", message=message, source=row.video))
        else:
            first_row[scan.sha256] = row
            taken.append((row, scan))
    return taken, failures


def _put(
    store: Store,
    config: IngestConfig,
    clips: list[Clip],
    failures: list[Failure],
    noted: Mapping[str, VideoScan],
    ingested: Ingested,
    previous: CatalogCommit | None,
) -> Summary:
    content = digest([[clip.model_dump() for clip in clips], [f.model_dump() for f in failures]])
    folder = f"datasets/{config.dataset}/{content}"
    num_sources = len({clip.source_sha256 for clip in clips})
    report = {
        "dataset": config.dataset,
        "clips": len(clips),
        "sources": num_sources,
        "refused": [failure.model_dump() for failure in failures],
        "read": [
            {"source": source, "notes": [note.model_dump() for note in scan.notes]}
            for source, scan in noted.items()
        ],
    }
    store.put(f"{folder}/videos.json", ingested.to_json())
    reused = previous is not None and previous.catalog == f"{folder}/catalog.parquet"
    known = previous.files if previous is not None and reused else ()
    files = (
        _put_once(store, f"{folder}/catalog.parquet", catalog.to_parquet(clips), known),
        _put_once(store, f"{folder}/report.json", json.dumps(report, indent=2).encode(), known),
    )
    reused &= known in ((), files)
    if not reused:
        record = CatalogCommit(
            dataset=config.dataset,
            number=previous.number + 1 if previous is not None else 1,
            catalog=f"{folder}/catalog.parquet",
            videos=f"{folder}/videos.json",
            num_clips=len(clips),
            num_failed=len(failures),
            files=files,
        )
        ledger.put_commit(store, catalog.commits_folder(config.dataset), record)
    held_out = sum(clip.split == "holdout" for clip in clips)
    lines = [
        f"{counted(len(clips), 'clip')} of {counted(num_sources, 'video')}, "
        f"{counted(held_out, 'clip')} held out"
    ]
    kinds = Counter(note.code for scan in noted.values() for note in scan.notes)
    if kinds:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        lines.append(f"noted of videos (the report says of which): {counts}")
    lines += [f"not taken: {f.source}: {f.message} [{f.code}]" for f in failures]
    return Summary(
        stage=STAGE,
        result=f"{folder}/catalog.parquet",
        reused=reused,
        text="\n".join(lines),
        counts={"clips": len(clips), "refused": len(failures), "held_out": held_out},
        links={"report": f"{folder}/report.json"},
    )


def _put_once(store: Store, path: str, data: bytes, known: Iterable[FileEntry]) -> FileEntry:
    """Write an object unless it is there as the newest commit recorded it.

    Another version of Arrow writes other bytes of the same rows.
    """
    recorded = [entry for entry in known if path.endswith(f"/{entry.name}")]
    if recorded and store.exists(path) and object_sha256(store, path) == recorded[0].sha256:
        return recorded[0]
    return put_file(store, path, data)
