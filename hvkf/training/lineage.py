"""What a run's LoRA has seen: its training videos, and those of the LoRA that it began from."""

import re
from collections.abc import Mapping
from typing import Any

from hvkf.catalog import newest_catalog, read_clips
from hvkf.journal import note_completed
from hvkf.loras import Lora
from hvkf.records import FORMAT_VERSION, Record
from hvkf.storage import Store
from hvkf.stored import read_record
from hvkf.training.runs import run_folder


class TrainedOn(Record):
    """The sha256 of every source video that a LoRA was trained on.

    `unknown` says what else went into it whose videos are not known; empty where all are.
    """

    format_version: int = FORMAT_VERSION
    sources: tuple[str, ...]
    unknown: tuple[str, ...] = ()


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
        before = None if lora.run_id is None else read_lineage(store, lora.run_id)
        if before is None:
            unknown.add(f"the LoRA {lora.name} that it began from")
        else:
            found |= set(before.sources)
            unknown |= set(before.unknown)
    record = TrainedOn(sources=tuple(sorted(found)), unknown=tuple(sorted(unknown)))
    store.put(lineage_path(run_id), record.to_json())
    note_completed(store, lineage_path(run_id))


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
