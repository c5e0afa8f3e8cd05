"""How much room the shards of a run take on this machine, against what may be used.

Each epoch reads every shard in an order of its own: with less room than all of them, most reads
would fetch a shard anew, so that a run with too little is refused instead.
"""

import re
from collections.abc import Mapping
from typing import Any

from hvkf import ledger
from hvkf.errors import BadInput
from hvkf.mds_index import read_index
from hvkf.storage import Store, open_folder

UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def parse_amount(text: str) -> int:
    """Read an amount of bytes as the reference's loader does: 500mb, 1.5tb, 1000000.

    Raises:
        BadInput: it is not one.
    """
    matched = AMOUNT.fullmatch(text.strip().lower())
    if matched is None or matched.group(2) not in UNITS:
        raise BadInput(
            f"data.streaming_kwargs.cache_limit {text!r} is no amount of bytes: write such as "
            "500gb or 2tb."
        )
    return int(float(matched.group(1)) * UNITS[matched.group(2)])


def check_cache_limit(limit: str | None, store: Store, sources: Mapping[str, Any]) -> None:
    """Check that all shards that must be copied to this machine may be kept on it.

    Raises:
        BadInput: they take more than `limit`.
    """
    if limit is None:
        return
    needed = _num_copied_bytes(store, sources)
    if needed > parse_amount(limit):
        raise BadInput(
            f"The shards to train on take {needed / (1 << 30):.1f} GiB on this machine, more than "
            f"data.streaming_kwargs.cache_limit={limit} allows: raise it, leave it out, or train "
            "on fewer buckets."
        )


def _num_copied_bytes(store: Store, sources: Mapping[str, Any]) -> int:
    if sources["kind"] == "mds":
        return sum(_folder_bytes(open_folder(entry["url"])) for entry in sources["folders"])
    records = [
        ledger.read_segment(store, sources["root"], segment) for segment in sources["segments"]
    ]
    return sum(
        entry.size
        for record in records
        for entry in record.files
        if store.local_path(f"{record.prefix}/{entry.name}") is None
    )


def _folder_bytes(folder: Store) -> int:
    """Count what is unpacked or fetched; what lies here uncompressed is read in its place."""
    return sum(
        shard.raw_data.bytes
        for shard in read_index(folder)
        if shard.zip_data or folder.local_path(shard.raw_data.basename) is None
    )
