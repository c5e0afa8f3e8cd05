"""Where numbered records and the records of segments lie, and which files are none of them."""

import re
from collections.abc import Iterable

from hvkf.storage import Store

NUMBERED = re.compile(r"([0-9]{6}|[1-9][0-9]{6,17})\.json")
KEPT_DIGITS = 12
"""So many digits of a segment's id begin the name of its folder of shards."""


def numbered(store: Store, folder: str) -> list[str]:
    """List a folder's numbered records, in their order; foreign files are left out."""
    found = [p for p in store.list(folder) if NUMBERED.fullmatch(p.removeprefix(f"{folder}/"))]
    return sorted(found, key=number_of)


def number_of(path: str) -> int:
    """Read the number of a numbered record's path."""
    return int(path.rpartition("/")[2].removesuffix(".json"))


def numbered_path(folder: str, number: int) -> str:
    """Where a numbered record lies."""
    return f"{folder}/{number:06d}.json"


def segment_path(root: str, segment_id: str) -> str:
    """Where the record of a segment lies; `root` is such as scenes/<stage version>."""
    return f"{root}/ledger/{segment_id}.json"


def shard_prefix(root: str, bucket: str, segment_id: str, content: str) -> str:
    """Where the shards of a segment lie, by their content."""
    return f"{root}/{bucket}/{segment_id[:KEPT_DIGITS]}-{content[:KEPT_DIGITS]}"


def may_be_condemned(paths: Iterable[str], condemned: Iterable[str]) -> set[str]:
    """Choose the segment records that may name condemned shards; their content decides."""
    suspects = set()
    for prefix in condemned:
        root, _, rest = prefix.rpartition("/")
        suspects.add((root.rpartition("/")[0], rest.partition("-")[0]))
    found = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        root, _, kind = folder.rpartition("/")
        segment = name.removesuffix(".json")[:KEPT_DIGITS]
        if kind == "ledger" and (root, segment) in suspects:
            found.add(path)
    return found
