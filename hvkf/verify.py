"""Whether all that is stored is as it was written: every object by its kind, and what is gone.

The records are read first, for they say which bytes the other objects had and which must be there;
then those are hashed anew. `hvkf/stored_kinds.py` tells the kinds apart.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hvkf.errors import CorruptData
from hvkf.journal import entry_path
from hvkf.progress import Progress, progress
from hvkf.shown import counted
from hvkf.storage import FORMAT_FILE, WORKSPACE_FORMAT, Store, object_sha256
from hvkf.stored import open_parquet, refuse_object
from hvkf.stored_kinds import ROOTS, Kind, fix_of, kind_of
from hvkf.training.losses import decode_line, hash_losses
from hvkf.verify_records import RECORDS, Claim, claims_of, read_checked

PASTED_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]+")
MAX_SHOWN = 5


class Verified(NamedTuple):
    """What was found: how many objects, a sentence for each that is not as it was written.

    Attributes:
        num_objects: All of them, but for the foreign ones.
        faults: A sentence for each that is damaged or gone.
        counts: How many objects there are of each kind.
        foreign: Paths of objects that hvkf did not write; they are left alone.
    """

    num_objects: int
    faults: list[str]
    counts: dict[str, int]
    foreign: list[str]

    def lines(self) -> list[str]:
        """Write for people how many objects of which kinds there are, and what is foreign."""
        counts = [f"  {name}: {count}" for name, count in self.counts.items()]
        if not self.foreign:
            return counts
        shown = ", ".join(self.foreign[:MAX_SHOWN])
        more = len(self.foreign) - MAX_SHOWN
        return [
            *counts,
            f"  {counted(len(self.foreign), 'foreign file')}, left alone: {shown}"
            + (f" and {more} more" if more > 0 else ""),
        ]


def verify_workspace(store: Store) -> Verified:
    """Read every record, and hash every object that one names."""
    paths = [path for root in ROOTS for path in store.list(root)]
    faults = []
    if store.exists(FORMAT_FILE):
        paths.insert(0, FORMAT_FILE)
    else:
        faults.append(f"{store.url}/{FORMAT_FILE} is gone: {fix_of(FORMAT_FILE)}.")
    kinds = {path: kind_of(path) for path in paths}
    known = {path: kind for path, kind in kinds.items() if kind is not None}
    counts = Counter(kind.name for kind in known.values())
    with progress("verify", len(known)) as shown:
        faults += _Verifier(store, known, shown).faults()
    order = {kind.name: None for kind in known.values()}
    return Verified(
        num_objects=len(known),
        faults=faults,
        counts={name: counts[name] for name in order},
        foreign=[path for path, kind in kinds.items() if kind is None],
    )


class _Verifier:
    """One look at all objects."""

    def __init__(self, store: Store, objects: dict[str, Kind], shown: Progress) -> None:
        self._store = store
        self._objects = objects
        self._shown = shown
        # What records say of other objects: by whom it is said, and the hash, if any.
        self._claims: dict[str, list[Claim]] = {}

    def faults(self) -> Iterator[str]:
        """Yield a sentence for each object that is damaged or gone."""
        records = [path for path, kind in self._objects.items() if kind.check == "record"]
        for path in records:
            yield from self._told(path, self._check_record)
        for path in [path for path, kind in self._objects.items() if kind.check != "record"]:
            yield from self._told(path, self._check_object)
        yield from self._gone()

    def _told(self, path: str, check: Callable[[str], None]) -> Iterator[str]:
        try:
            check(path)
        except CorruptData as fault:
            yield str(fault)
        except FileNotFoundError:
            pass  # deleted since it was listed; who names it misses it
        self._shown.advance(note=path)

    def _check_record(self, path: str) -> None:
        kind = RECORDS[self._objects[path].name]
        record = read_checked(self._store, path, kind)
        for claim in claims_of(record, self._store, path):
            self._claims.setdefault(claim.path, []).append(claim)

    def _check_object(self, path: str) -> None:
        kind = self._objects[path]
        hashes = {claim.sha256 for claim in self._claims.get(path, ()) if claim.sha256 is not None}
        if PASTED_NAME.fullmatch(path.rpartition("/")[2]):
            hashes.add(path.rpartition("/")[2].partition(".")[0])
        if hashes and object_sha256(self._store, path) not in hashes:
            raise CorruptData(
                f"{self._store.url}/{path} has other bytes than were recorded: {fix_of(path)}."
            )
        if kind.check == "table" and not hashes:
            with open_parquet(self._store, path) as table:
                for group in range(table.num_row_groups):
                    table.read_row_group(group, use_threads=False)
        elif kind.check == "lines":
            self._check_losses(path)
        elif kind.check == "text":
            _check_format(self._store, path)

    def _check_losses(self, path: str) -> None:
        data = self._store.read(path)
        for number, line in enumerate(data.splitlines(), 1):
            decode_line(self._store, path, number, line)
        for claim in self._claims.get(path, ()):
            if claim.num_lines and claim.losses_sha256 != hash_losses(data, claim.num_lines):
                raise CorruptData(
                    f"{self._store.url}/{path} has other bytes than {claim.by} recorded: "
                    f"{fix_of(path)}."
                )

    def _gone(self) -> Iterator[str]:
        for path, claims in sorted(self._claims.items()):
            if path in self._objects or self._store.exists(path):
                continue
            # Who names it may have been deleted meanwhile, as checkpoints are pruned.
            by = next((claim.by for claim in claims if self._store.exists(claim.by)), None)
            if by is None:
                continue
            sentence = f"{self._store.url}/{path} is gone although {by} names it: {fix_of(path)}"
            if by == entry_path(path):
                sentence += f"; if it was deleted on purpose, tell by `hvkf verify --forget {path}`"
            yield f"{sentence}."


def _check_format(store: Store, path: str) -> None:
    if store.read(path) != f"{WORKSPACE_FORMAT}\n".encode():
        refuse_object(store, path, "it holds another text")
