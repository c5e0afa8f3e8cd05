"""MDS folders as an attacker writes them: indexes that lead elsewhere, samples that run code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streaming import MDSWriter

from hvkf.records import FileEntry, ItemEntry, SegmentRecord
from hvkf.storage import FolderStore, file_sha256
from tests.reference_caches import LATENT_COLUMNS, Record, latent_record

Index = dict[str, Any]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._marker,)


def write_bomb(folder: Path, marker: Path, column: str = "prompt_embeds") -> Path:
    """Write a cache of the reference's columns, one of which holds a pickle that runs code."""
    record: Record = {**latent_record(1), column: Bomb(marker)}
    with MDSWriter(
        out=str(folder), columns={**LATENT_COLUMNS, column: "pkl"}, hashes=["sha256"]
    ) as writer:
        writer.write(record)
    return folder


def change_index(folder: Path, change: Callable[[Index], object]) -> Path:
    """Change the entry of a folder's first shard, as JSON."""
    file = folder / "index.json"
    index = json.loads(file.read_bytes())
    change(index["shards"][0])
    file.write_text(json.dumps(index))
    return folder


def as_segment(store: FolderStore, folder: Path, num_items: int = 1) -> SegmentRecord:
    """Put a folder's files into a workspace as a segment, with a ledger record that fits them."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in files:
        store.upload(file, f"latents/x/{file.name}")
    entries = [
        FileEntry(name=file.name, sha256=file_sha256(file), size=file.stat().st_size)
        for file in files
    ]
    items = [ItemEntry(key=str(n), source_sha256="", sha256="") for n in range(num_items)]
    return SegmentRecord(
        segment_id="0" * 32,
        bucket="32x32x5",
        prefix="latents/x",
        items=tuple(items),
        files=tuple(entries),
        attempt="test",
    )
