"""Hashing what is stored anew, and comparing it with what the ledger recorded."""

from collections.abc import Iterable

from hvkf.ledger import check_files
from hvkf.progress import progress
from hvkf.records import CheckpointRecord, FileEntry, SegmentRecord
from hvkf.registry import kept_files
from hvkf.stages.render_records import LEDGER, RenderRecord, render_folder
from hvkf.storage import Store
from hvkf.stored import read_record


def _recorded(store: Store) -> Iterable[tuple[str, tuple[FileEntry, ...]]]:
    for kind in ("scenes", "latents"):
        for path in store.list(kind):
            if path.split("/")[2:3] == ["ledger"]:
                segment = read_record(store, path, SegmentRecord)
                yield segment.prefix, segment.files
    for path in store.list("runs"):
        if path.endswith("/commit.json"):
            checkpoint = read_record(store, path, CheckpointRecord)
            yield path.removesuffix("/commit.json"), checkpoint.files
    for path in store.list(LEDGER):
        rendered = read_record(store, path, RenderRecord)
        yield render_folder(rendered.identity), rendered.files
    for folder, file in kept_files(store):
        yield folder, (file,)


def verify_workspace(store: Store) -> tuple[int, list[str]]:
    """Hash every shard, checkpoint, rendered video and registered LoRA that a record names.

    Returns:
        How many files there are, and a sentence for each that is gone or changed.
    """
    recorded = list(_recorded(store))
    faults: list[str] = []
    with progress("verify", sum(len(files) for _, files in recorded)) as shown:
        for prefix, files in recorded:
            for entry in files:
                faults += check_files(store, prefix, [entry])
                shown.advance(note=prefix)
    return sum(len(files) for _, files in recorded), faults
