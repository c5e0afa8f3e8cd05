"""What a run's LoRA has seen: its training videos, and those of the LoRA that it began from."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvkf.catalog import newest_catalog, read_clips
from hvkf.journal import note_completed
from hvkf.loras import Lora
from hvkf.model_source import WORKSPACE_SCHEME
from hvkf.records import FORMAT_VERSION, Record
from hvkf.storage import Store
from hvkf.stored import decode_record, read_record
from hvkf.training.runs import run_folder
from hvkf.user_files import read_regular

BESIDE = "trained_on.json"


class TrainedOn(Record):
    """The sha256 of every source video that a LoRA was trained on.

    `unknown` says what else went into it whose videos are not known; empty where all are.
    """

    format_version: int = FORMAT_VERSION
    sources: tuple[str, ...]
    unknown: tuple[str, ...] = ()


class TrainedOnFile(Record):
    """The list of a LoRA's videos that lies beside its file; the LoRA is named by its content."""

    lora_sha256: str
    trained_on: TrainedOn


def lineage_path(run_id: str) -> str:
    """Where the videos of a run are listed."""
    return f"{run_folder(run_id)}/trained_on.json"


def write_lineage(store: Store, run_id: str, sources: Mapping[str, Any], lora: Lora) -> None:
    """List the videos of a run before it trains.

    Args:
        store: The workspace.
        run_id: The run.
        sources: What it trains on, as `hvkf.training.items.find_sources` says it.
        lora: What it begins from; of no file where it begins from nothing.
    """
    found: set[str] = set()
    unknown: set[str] = set()
    if sources["kind"] == "segments":
        clips = read_clips(store, sources["catalog"])
        found |= {clip.source_sha256 for clip in clips if clip.split == "train"}
    else:
        unknown |= {f"the shards of {entry['url']}" for entry in sources["folders"]}
    if lora.sha256 is not None:
        before = _beside(lora) if lora.run_id is None else read_lineage(store, lora.run_id)
        if before is None:
            unknown.add(f"the LoRA {lora.name} that it began from")
        else:
            found |= set(before.sources)
            unknown |= set(before.unknown)
    record = TrainedOn(sources=tuple(sorted(found)), unknown=tuple(sorted(unknown)))
    store.put(lineage_path(run_id), record.to_json())
    note_completed(store, lineage_path(run_id))


def _beside(lora: Lora) -> TrainedOn | None:
    """Read the videos of a LoRA file of this machine from the list that may lie beside it.

    The packaged LoRA has one. A list that names another LoRA by its sha256 is none of this one's.

    Raises:
        CorruptData: the list does not read.
    """
    if lora.location is None or lora.location.startswith(WORKSPACE_SCHEME):
        return None
    file = Path(lora.location).with_name(BESIDE)
    if not file.is_file():
        return None
    fix = "restore it, or remove it: the LoRA's videos are then unknown"
    listed = decode_record(read_regular(file), str(file), TrainedOnFile, fix)
    return listed.trained_on if listed.lora_sha256 == lora.sha256 else None


def read_lineage(store: Store, run_id: str) -> TrainedOn | None:
    """Read the videos of a run; None where it has no list."""
    try:
        return read_record(store, lineage_path(run_id), TrainedOn)
    except FileNotFoundError:
        return None


def seen_held_out(store: Store, trained: TrainedOn) -> list[str]:
    """List held-out videos, of any data set of the workspace, that a LoRA was trained on."""
    # Data sets that were ingested: those that were imported hold no video out.
    committed = re.compile(r"datasets/([^/]+)/commits/\d+\.json")
    found = (committed.fullmatch(path) for path in store.list("datasets"))
    datasets = sorted({match.group(1) for match in found if match})
    sources = set(trained.sources)
    seen = {
        clip.source
        for dataset in datasets
        for clip in read_clips(store, newest_catalog(store, dataset).catalog)
        if clip.split == "holdout" and clip.source_sha256 in sources
    }
    return sorted(seen)
