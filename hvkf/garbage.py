"""What nothing refers to: shards without a commit, and pieces that killed workers left."""

import time

from hvkf.records import DatasetCommit, SegmentRecord
from hvkf.registry import unused_loras
from hvkf.storage import Store
from hvkf.stored import read_record

SHARD_ROOTS = ("scenes", "latents")


def find_garbage(store: Store, min_age_s: float) -> list[tuple[str, int]]:
    """List objects that no commit refers to and that are older than `min_age_s`, with their sizes.

    Scenes and latents count as used by any commit of any data set, a LoRA of the registry by any
    version of any name; plans, runs, evaluations and renders are never garbage.
    """
    candidates = [*store.list_partial(), *unused_loras(store)]
    for kind in SHARD_ROOTS:
        candidates += _unused_shards(store, list(store.list(kind)))
    oldest_kept_s = time.time() - min_age_s
    found = []
    for path in candidates:
        try:
            info = store.stat(path)
        except FileNotFoundError:  # its writer finished meanwhile
            continue
        if info.modified_s <= oldest_kept_s:
            found.append((path, info.size))
    return found


def _unused_shards(store: Store, paths: list[str]) -> list[str]:
    """Tell the objects of one kind apart: kind/root/{commits,ledger,<bucket>}/..."""
    used_segments: set[tuple[str, str]] = set()
    for path in paths:
        _, root, folder, *_ = path.split("/")
        if folder == "commits":
            commit = read_record(store, path, DatasetCommit)
            used_segments |= {(root, segment) for segment in commit.segments}
    shards, unused, prefixes = [], [], set()
    for path in paths:
        _, root, folder, *_ = path.split("/")
        if folder == "ledger":
            record = read_record(store, path, SegmentRecord)
            if (root, record.segment_id) in used_segments:
                prefixes.add(record.prefix)
            else:
                unused.append(path)
        elif folder != "commits":
            shards.append(path)
    return unused + [path for path in shards if path.rpartition("/")[0] not in prefixes]
