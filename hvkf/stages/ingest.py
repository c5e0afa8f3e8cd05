"""Ingest: from a table of videos and captions to a catalog of clips, and a report on the rest.

Reads the metadata table and the videos beside it; writes `datasets/<name>/<digest>/`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from hvkf import catalog, ledger
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.progress import progress
from hvkf.records import (
    CatalogCommit,
    Clip,
    Failure,
    Part,
    Plan,
    Record,
    Summary,
    digest,
)
from hvkf.settings.data import IngestConfig
from hvkf.stages.ingest_sources import UNREADABLE, source_folder, source_stat, split_location
from hvkf.stages.ingest_splits import decide_splits
from hvkf.storage import Store, open_folder
from hvkf.stored import read_named
from hvkf.tables import TableRow, parse_table
from hvkf.user_files import reason_of, shortened

STAGE = "ingest"
STAGE_VERSION = 1
VIDEOS_PER_PART = 32


class VideoTask(Record):
    """One source video to look at, as it was when the plan was made."""

    source: str
    size: int
    tag: str


class VideoScan(Record):
    """What one look at a source video found; `failure` says why it cannot be used."""

    task: VideoTask
    settings: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    perceptual_hash: str = ""
    failure: Failure | None = None


class ScanRecord(Record):
    """What one part of ingest found."""

    scans: tuple[VideoScan, ...]


class _Ingested(Record):
    """What a commit of ingest remembers beside the catalog, so that the next looks only at news."""

    scans: tuple[VideoScan, ...]
    splits: dict[str, str]


def _read_rows(config: IngestConfig) -> list[TableRow]:
    folder, name = split_location(config.metadata)
    try:
        data = open_folder(folder).read(name)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(
            f"There is no table {config.metadata!r}: set ingest.metadata to a CSV, JSON, JSONL or "
            "Parquet file with a column of video paths and one of captions."
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The table {shortened(config.metadata)!r} cannot be read: {reason_of(error)}; set "
            "ingest.metadata to another file."
        ) from error
    return parse_table(
        data,
        PurePosixPath(name).suffix,
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
        ]
    )


def _tasks(rows: Iterable[TableRow], sources: Store) -> list[VideoTask]:
    tasks = []
    for source in sorted({row.video for row in rows}):
        size, tag = source_stat(sources, source)
        tasks.append(VideoTask(source=source, size=size, tag=tag))
    return tasks


def _previous(store: Store, dataset: str) -> tuple[CatalogCommit | None, _Ingested]:
    commit = ledger.latest_commit(store, catalog.commits_folder(dataset), CatalogCommit)
    if commit is None:
        return None, _Ingested(scans=(), splits={})
    return commit, read_named(store, commit.videos, _Ingested)


def plan(config: Config, store: Store) -> Plan:
    """Find the videos that are new or changed, and share them out."""
    ingest = config.ingest
    rows = _read_rows(ingest)
    tasks = _tasks(rows, open_folder(source_folder(ingest)))
    settings = _scan_settings(ingest)
    commit, previous = _previous(store, ingest.dataset)
    known = {scan.task: scan for scan in previous.scans if scan.settings == settings}
    again = {task for task, scan in known.items() if _may_pass(scan)}
    new = [task for task in tasks if task not in known or task in again]
    # Looked at again under another name than last time: what is recorded stays.
    attempt = commit.number if commit is not None and not again.isdisjoint(new) else 0
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
    sources = open_folder(source_folder(config))
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
    tasks = _tasks(rows, open_folder(source_folder(ingest)))
    current = {task.source: scans.get(task, by_source.get(task.source)) for task in tasks}
    taken, failures = _take(rows, current)
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
    clips = [clip for row, scan in taken for clip in _clips(row, scan, splits, ingest)]
    if not clips:
        raise BadInput(f"{ingest.metadata}: not one video can be used; see the reasons above.")
    kept = tuple(scan for _, scan in sorted(current.items()) if scan is not None)
    return _put(
        store, ingest, clips, failures, _Ingested(scans=kept, splits=splits), previous_commit
    )


def _take(
    rows: Sequence[TableRow], scans: dict[str, VideoScan | None]
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
        elif scan.sha256 in first_row:
            message = f"row {row.row} has the content of {first_row[scan.sha256].video}"
            failures.append(Failure(code="duplicate", message=message, source=row.video))
        else:
            first_row[scan.sha256] = row
            taken.append((row, scan))
    return taken, failures


def _clips(
    row: TableRow, scan: VideoScan, splits: dict[str, str], config: IngestConfig
) -> Iterable[Clip]:
    fps = config.target_fps or scan.fps
    for start, end in scan.cuts:
        yield Clip.model_validate(
            {
                "clip_id": digest([scan.sha256, start, end, fps]),
                "source": row.video,
                "source_sha256": scan.sha256,
                "caption": row.caption,
                "start": start,
                "end": end,
                "source_frames": scan.num_frames,
                "source_fps": scan.fps,
                "num_frames": num_resampled(end - start, scan.fps, config.target_fps),
                "fps": fps,
                "width": scan.width,
                "height": scan.height,
                "duration_s": (end - start) / scan.fps,
                "split": splits[scan.sha256],
            }
        )


def num_resampled(num_frames: int, fps: float, target_fps: float | None) -> int:
    """Count the frames of a clip after resampling."""
    from hvkf.video import resample_indices

    return len(resample_indices(num_frames, fps, target_fps))


def _put(
    store: Store,
    config: IngestConfig,
    clips: list[Clip],
    failures: list[Failure],
    ingested: _Ingested,
    previous: CatalogCommit | None,
) -> Summary:
    content = digest([[clip.model_dump() for clip in clips], [f.model_dump() for f in failures]])
    folder = f"datasets/{config.dataset}/{content}"
    report = {
        "dataset": config.dataset,
        "clips": len(clips),
        "sources": len({clip.source_sha256 for clip in clips}),
        "refused": [failure.model_dump() for failure in failures],
    }
    store.put(f"{folder}/catalog.parquet", catalog.to_parquet(clips))
    store.put(f"{folder}/videos.json", ingested.to_json())
    store.put(f"{folder}/report.json", json.dumps(report, indent=2).encode())
    reused = previous is not None and previous.catalog == f"{folder}/catalog.parquet"
    if not reused:
        record = CatalogCommit(
            dataset=config.dataset,
            number=previous.number + 1 if previous is not None else 1,
            catalog=f"{folder}/catalog.parquet",
            videos=f"{folder}/videos.json",
            num_clips=len(clips),
            num_failed=len(failures),
        )
        ledger.put_commit(store, catalog.commits_folder(config.dataset), record)
    held_out = sum(clip.split == "holdout" for clip in clips)
    lines = [f"{len(clips)} clips of {report['sources']} videos, {held_out} clips held out"]
    lines += [f"not taken: {f.source}: {f.message} [{f.code}]" for f in failures]
    return Summary(
        stage=STAGE,
        result=f"{folder}/catalog.parquet",
        reused=reused,
        text="\n".join(lines),
        counts={"clips": len(clips), "refused": len(failures), "held_out": held_out},
        links={"report": f"{folder}/report.json"},
    )
