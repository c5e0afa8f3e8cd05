"""What there is to train on: the newest latents of the data set, or caches of the reference.

Found without torch or `streaming`, since planning a run needs it too.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hvkf import ledger
from hvkf.catalog import read_clips
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.mds_index import MdsShard, check_stored, read_index
from hvkf.records import digest
from hvkf.settings.data import DataConfig
from hvkf.shown import counted
from hvkf.storage import Store, open_folder

SAMPLED_BYTES = 1 << 20
MAX_SHOWN = 300
BUCKET_NAME = re.compile(r"^(\d+x\d+x\d+)(_\d+)?$")


class Item(NamedTuple):
    """A sample: its key, its bucket, and where it lies: in which source, at which position."""

    key: str
    bucket: str
    source: int
    position: int


class Items(NamedTuple):
    """The samples that train, those that only validate, and the digest of all their bytes."""

    train: list[Item]
    holdout: list[Item]
    identity: str

    def by_bucket(self) -> dict[str, list[str]]:
        """List the keys that train, by bucket, buckets sorted."""
        found: dict[str, list[str]] = {}
        for item in self.train:
            found.setdefault(item.bucket, []).append(item.key)
        return dict(sorted(found.items()))

    def counts(self) -> list[int]:
        """Count the items that train in each bucket."""
        return [len(keys) for keys in self.by_bucket().values()]


def find_sources(config: Config, store: Store) -> dict[str, Any]:
    """Say which latents this configuration trains on, as JSON that a plan can carry.

    Raises:
        BadInput: nothing is encoded with these settings, or a cache's folder has no index.
    """
    if config.data.local or config.data.remote:
        return {"kind": "mds", "folders": _cache_folders(config.data)}
    from hvkf.stages.encode import newest_latents

    found = newest_latents(config, store)
    if found is None:
        raise BadInput(
            f"The workspace {store.url} has no latents of data set {config.ingest.dataset!r} made "
            "with these settings: run `hvkf encode` first, with the same configuration, or name "
            "MDS folders in data.local."
        )
    root, commit = found
    return {
        "kind": "segments",
        "root": root,
        "segments": list(commit.segments),
        "masked": list(commit.masked),
        "catalog": commit.catalog,
    }


def read_items(store: Store, sources: Mapping[str, Any], data: DataConfig) -> Items:
    """List the samples of `sources`, as `find_sources` returned them.

    Raises:
        BadInput: there is none to train on, or a cache lacks a column.
        CorruptData: a segment's record is gone.
    """
    if sources["kind"] == "mds":
        entries = list(_cache_items(sources["folders"], data))
        held_out: set[str] = set()
    else:
        clips = read_clips(store, sources["catalog"])
        held_out = {clip.source_sha256 for clip in clips if clip.split == "holdout"}
        entries = list(_segment_items(store, sources))
    train: list[Item] = []
    holdout: list[Item] = []
    content: list[list[object]] = []
    known = set()
    for item, source_sha256, sha256 in entries:
        if item.key in known:
            continue
        known.add(item.key)
        is_held_out = source_sha256 in held_out
        (holdout if is_held_out else train).append(item)
        content.append([item.bucket, item.key, sha256, is_held_out])
    if not train:
        raise BadInput(
            f"There is nothing to train on: every sample ({len(holdout)}) is of a held-out "
            "video. Lower ingest.holdout_fraction or ingest.min_holdout, or add videos."
        )
    columns = [column for _, column in _columns(data)] if sources["kind"] == "mds" else []
    return Items(train, holdout, digest([*content, *columns]))


def _segment_items(store: Store, sources: Mapping[str, Any]) -> Iterable[tuple[Item, str, str]]:
    masked = set(sources["masked"])
    for number, segment in enumerate(sources["segments"]):
        record = ledger.read_segment(store, sources["root"], segment)
        for position, entry in enumerate(record.items):
            if entry.key not in masked:
                item = Item(entry.key, record.bucket, number, position)
                yield item, entry.source_sha256, entry.sha256


def _cache_folders(data: DataConfig) -> list[dict[str, str]]:
    """Pair `data.remote` with `data.local`: remote shards are brought into the local folder."""
    local = [_absolute(folder) for folder in data.local or ()]
    remote = [_absolute(folder) for folder in data.remote or ()]
    if remote and local and len(remote) != len(local):
        raise BadInput(
            f"data.remote names {counted(len(remote), 'folder')} and data.local {len(local)}: give "
            "as many, or leave data.local out."
        )
    if not remote:
        return [{"url": folder, "cache": ""} for folder in local]
    caches = local or [""] * len(remote)
    return [{"url": url, "cache": cache} for url, cache in zip(remote, caches, strict=True)]


def _absolute(folder: str) -> str:
    """Name a folder so that a worker finds it wherever it was started."""
    return folder if "://" in folder else str(Path(folder).expanduser().absolute())


def _columns(data: DataConfig) -> list[tuple[str, str]]:
    """List the settings that name columns, and what they name."""
    return [
        ("data.latents_key", data.latents_key),
        ("data.latents_cond_key", data.latents_cond_key),
        ("data.prompt_embeds_key", data.prompt_embeds_key),
        ("data.prompt_attention_mask_key", data.prompt_attention_mask_key),
        ("data.pooled_prompt_embeds_key", data.pooled_prompt_embeds_key),
    ]


def _cache_items(
    folders: Iterable[Mapping[str, str]], data: DataConfig
) -> Iterable[tuple[Item, str, str]]:
    for number, entry in enumerate(folders):
        folder = open_folder(entry["url"])
        name = posixpath.basename(entry["url"].rstrip("/"))
        matched = BUCKET_NAME.match(name)
        position = 0
        for shard in read_index(folder):
            for setting, column in _columns(data):
                if column not in shard.column_names:
                    raise BadInput(
                        f"The shards of {folder.url} have no column {column!r}, but "
                        f"{', '.join(shard.column_names)[:MAX_SHOWN]}: set {setting}."
                    )
            content = _shard_identity(folder, shard)
            for index in range(shard.samples):
                key = digest([content, index])
                bucket = matched.group(1) if matched else entry["url"]
                yield Item(key, bucket, number, position), "", key
                position += 1


def _shard_identity(folder: Store, shard: MdsShard) -> str:
    """Name a shard by its index entry and parts of its bytes: reading all would take hours.

    Raises:
        CorruptData: it is gone, or not as long as its index says.
    """
    stat = check_stored(folder, shard)
    name = shard.stored.basename
    hashed = hashlib.sha256(digest(shard.model_dump(mode="json")).encode())
    file = folder.local_path(name)
    if file is None:
        hashed.update(stat.tag.encode())
        return hashed.hexdigest()
    with file.open("rb") as content:
        for offset in sorted({0, stat.size // 2, max(0, stat.size - SAMPLED_BYTES)}):
            content.seek(offset)
            hashed.update(content.read(SAMPLED_BYTES))
    return hashed.hexdigest()
