"""What nothing refers to, and how it is deleted without ever taking what somebody needs.

Used are: the segments that a commit of any data set lists; those that a plan makes which was stored
within the last week and is not committed (`hvkf.uses`); LoRAs that a registered name's history
names; and everything, while a command or a worker is at work: then nothing is deleted, and the
error says who works. Files that are not ours (`.DS_Store`, notes) are named and left alone.

Leases protect against surprises, not against a frozen process: one that was suspended for a day
does not know that its lease has ended. What follows needs no clock. Its only conditions are those
of `hvkf.storage`: a put is seen by every later read and list, and `put_new` succeeds once.

A deletion (a *sweep*, `gc/NNNNNN.json`) of folders of shards, each a segment record's `prefix`:

 G1. put the sweep's record with the prefixes that it condemns;
 G2. withdraw it if a process is at work after all;
 G3. take the next commit number of each data set concerned, with a copy of its newest commit;
 G4. read all commits and plans, spare what they use, and put the record with the rest;
 G5. overwrite the records of the condemned segments with empty ones, and delete their shards.

A commit (`ledger.commit_dataset`):

 C1. register the data set by its commit 0, if it has none;
 C2. read the newest commit's number n;
 C3. read the sweeps and the segment records: condemned segments are missing, and end the commit;
 C4. take number n + 1 with `put_new`; if it is taken, go to C2.

A writer of a segment:

 W1. read the sweeps, and choose a prefix that none has condemned;
 W2. upload; then put the segment's record if there is none, or in place of a condemned one.

Claim: no commit ever lists a segment whose shards a sweep deletes.
 - Let a commit take number m of a data set, listing a segment with prefix p, and let a sweep have
   condemned p. If C3 came after G1, the commit saw it and ended. So C3 came before G1, and C2
   before that. At G3 the sweep lists the data set (C1 came before C2) and takes a number: had it
   taken m or a later one before C4, then C4 had found m taken, gone back to C2, and met the case
   above. So C4 came before G3, G4 sees the commit, and the sweep spares p.
 - A condemned prefix is never chosen again (W1). A writer that chose p before G1 may still put its
   record afterwards (W2): it names p, is condemned, and counts nowhere. So whatever a sweep that
   was frozen deletes later, it is what nobody relies on.
 - A record is overwritten (G5, W2) only where it still has the bytes that were read (`put_if`).

Nobody waits for ever: a sweep that decides (G1 to G4) is waited for while its process lives and its
lease lasts; if it ends half-way, what it condemned stays condemned and is made again elsewhere.

A promotion (`hvkf.stages.promotion`) puts the registry's record and then looks whether its LoRA is
still there, and a sweep reads the registry before it deletes a LoRA: one sees the other. Here alone
both would have to freeze at the same moment for a LoRA to be lost, and `check_lora` would say so.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Set
from functools import partial
from typing import NamedTuple

from hvkf import ledger
from hvkf.errors import AlreadyExists, TryAgain
from hvkf.ledger_paths import NUMBERED, may_be_condemned, segment_path
from hvkf.records import DatasetCommit, SegmentRecord
from hvkf.registry import unused_loras
from hvkf.storage import Store
from hvkf.stored import decode_record, read_record
from hvkf.stored_kinds import fix_of
from hvkf.sweeps import LEASE_S, Phase, Sweep, begin_sweep, change_sweep
from hvkf.uses import drop_ended_work, live_work, open_plans

SHARD_ROOTS = ("scenes", "latents")
PARTIAL_AGE_S = 3600.0
"""A file that is being written is none that a killed process left."""
RECORD_NAME = re.compile(r"[^./][^/]*\.json")
SHARD_FOLDER = re.compile(r"[^./][^/]*-[0-9a-f]+(-[0-9]+)?")
SHARD_NAME = re.compile(r"index\.json|shard\.[0-9]+\.mds(\.[a-z0-9]+)?")
Clock = Callable[[], float]


class GarbageFile(NamedTuple):
    """A stored object that nothing refers to."""

    path: str
    size: int
    kind: str


class Garbage(NamedTuple):
    """What can be deleted, and files that are none of ours.

    `prefixes` are the folders of shards among `files`.
    """

    files: tuple[GarbageFile, ...]
    prefixes: frozenset[str]
    foreign: tuple[str, ...]


class _Objects:
    """The objects of scenes/ or latents/, told apart by their paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.commits: list[str] = []
        self.records: list[str] = []
        self.shards: dict[str, list[str]] = {}
        self.foreign: list[str] = []
        for path in paths:
            self._put(path)

    def _put(self, path: str) -> None:
        _, *folders, name = path.split("/")
        if len(folders) >= 3 and folders[1] == "commits" and NUMBERED.fullmatch(name):
            self.commits.append(path)
        elif len(folders) == 2 and folders[1] == "ledger" and RECORD_NAME.fullmatch(name):
            self.records.append(path)
        elif (
            len(folders) == 3
            and folders[1] not in ("commits", "ledger")
            and SHARD_FOLDER.fullmatch(folders[2])
            and SHARD_NAME.fullmatch(name)
        ):
            self.shards.setdefault(path.rpartition("/")[0], []).append(path)
        else:
            self.foreign.append(path)


def find_garbage(store: Store, min_age_s: float, clock: Clock = time.time) -> Garbage:
    """List what nothing refers to and is older than `min_age_s`; changes nothing.

    Plans, runs, evaluations and renders are never garbage.
    """
    now_s = clock()
    files: list[GarbageFile] = []
    prefixes: set[str] = set()
    foreign = [*store.list_root(), *_foreign_records(store)]
    for kind in SHARD_ROOTS:
        objects = _Objects(store.list(kind))
        foreign += objects.foreign
        for prefix, of_prefix in _unused(store, objects, now_s):
            found = list(_old(store, kind, of_prefix, now_s - min_age_s))
            if len(found) == len(of_prefix):
                files += found
                prefixes.add(prefix)
    partial_age_s = max(min_age_s, PARTIAL_AGE_S)
    files += _old(store, "unfinished", store.list_partial(), now_s - partial_age_s)
    files += _old(store, "registry", unused_loras(store), now_s - min_age_s)
    return Garbage(tuple(files), frozenset(prefixes), tuple(sorted(foreign)))


def _foreign_records(store: Store) -> Iterator[str]:
    """Yield files that lie among records of other kinds than segments, and are none."""
    for path in store.list("registry"):
        folder, _, name = path.rpartition("/")
        if folder == "registry" and not RECORD_NAME.fullmatch(name):
            yield path
    for kind, depth in (("datasets", 4), ("nightly", 3), ("gc", 2)):
        for path in store.list(kind):
            *folders, name = path.split("/")
            is_record = len(folders) == depth - 1 and NUMBERED.fullmatch(name)
            if name.startswith(".") or not (is_record or folders[-1] not in (kind, "commits")):
                yield path


def _old(store: Store, kind: str, paths: Iterable[str], until_s: float) -> Iterator[GarbageFile]:
    for path in paths:
        try:
            info = store.stat(path)
        except FileNotFoundError:  # its writer finished meanwhile
            continue
        if info.modified_s <= until_s:
            yield GarbageFile(path, info.size, kind)


def _unused(store: Store, objects: _Objects, now_s: float) -> Iterator[tuple[str, list[str]]]:
    """Yield each prefix that nothing uses, with its shards and its segment's record."""
    used = _used_segments(store, objects.commits, now_s)
    kept, unused = set(), dict(objects.shards)
    for path in objects.records:
        root = path.rpartition("/ledger/")[0]
        record = read_record(store, path, SegmentRecord)
        if (root, record.segment_id) in used:
            kept.add(record.prefix)
        elif record.files:  # one without is what is left of a deleted segment
            unused.setdefault(record.prefix, []).append(path)
    yield from ((prefix, paths) for prefix, paths in unused.items() if prefix not in kept)


def _used_segments(store: Store, commit_paths: Iterable[str], now_s: float) -> set[tuple[str, str]]:
    """List the segments that commits and open plans name, with their roots."""
    used = set()
    for path in commit_paths:
        root = path.partition("/commits/")[0]
        commit = read_record(store, path, DatasetCommit)
        used |= {(root, segment) for segment in commit.segments}
    for use in open_plans(store, now_s):
        for output in ledger.planned_outputs(store, use.stage, use.digest):
            root, is_segment, name = output.rpartition("/ledger/")
            if is_segment:
                used.add((root, name.removesuffix(".json")))
    return used


def remove_garbage(store: Store, garbage: Garbage, clock: Clock = time.time) -> list[GarbageFile]:
    """Delete what was found, but for what is used since; return what was deleted.

    Raises:
        TryAgain: a command or a worker is at work; it is named, with how it ends.
    """
    refuse_while_at_work(store, clock)
    removed = _Sweep(store, clock).remove(garbage.prefixes) if garbage.prefixes else set()
    unused = set(unused_loras(store))
    for file in garbage.files:
        if file.kind == "unfinished" or (file.kind == "registry" and file.path in unused):
            store.delete(file.path)
    drop_ended_work(store, clock())
    return [
        file
        for file in garbage.files
        if file.kind == "unfinished" or file.path in unused or file.path in removed
    ]


def refuse_while_at_work(store: Store, clock: Clock = time.time) -> None:
    """Refuse to delete while somebody works.

    Raises:
        TryAgain: a command or a worker is at work; it is named, with how it ends.
    """
    uses = live_work(store, clock())
    if uses:
        more = f" And {len(uses) - 1} more." if len(uses) > 1 else ""
        raise TryAgain(f"Nothing was deleted in {store.url}: {uses[0].sentence()}{more}")


class _Sweep:
    """One deletion of folders of shards; the steps are those of the module's text."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._record: Sweep = begin_sweep(store, clock)

    def remove(self, prefixes: Set[str]) -> set[str]:
        """Delete folders of shards, and return the paths that are gone."""
        try:
            self._change("condemning", prefixes)
            refuse_while_at_work(self._store, self._clock)
            roots = {prefix.rsplit("/", 2)[0] for prefix in prefixes}
            for root in sorted(roots):
                self._take_commit_numbers(root)
            doomed = prefixes - self._used_prefixes(roots)
            self._change("deleting", doomed)
        except BaseException:
            self._change("withdrawn", frozenset())
            raise
        removed = set()
        for root in sorted(roots):
            removed |= self._forget_records(root, doomed)
        for prefix in sorted(doomed):
            removed |= self._delete_shards(prefix)
        self._change("done", doomed)
        return removed

    def _change(self, phase: Phase, prefixes: Set[str]) -> None:
        self._record = change_sweep(self._store, self._record, phase, prefixes, self._clock)

    def _take_commit_numbers(self, root: str) -> None:
        """Overtake commits that read the sweeps before this one condemned anything."""
        folder = f"{root}/commits"
        names = (path.removeprefix(f"{folder}/") for path in self._store.list(folder))
        for dataset in sorted({name.rpartition("/")[0] for name in names} - {""}):
            commits = ledger.dataset_folder(root, dataset)
            ledger.on_conflict_again(partial(self._take_number, commits), dataset)

    def _take_number(self, folder: str) -> None:
        newest = ledger.latest_commit(self._store, folder, DatasetCommit)
        if newest is not None:
            ledger.put_commit(
                self._store, folder, newest.model_copy(update={"number": newest.number + 1})
            )

    def _used_prefixes(self, roots: Set[str]) -> set[str]:
        used = set()
        for root in roots:
            objects = _Objects(self._store.list(root))
            for of_root, segment in _used_segments(self._store, objects.commits, self._clock()):
                path = segment_path(of_root, segment)
                if of_root == root and self._store.exists(path):
                    used.add(read_record(self._store, path, SegmentRecord).prefix)
        return used

    def _forget_records(self, root: str, doomed: Set[str]) -> set[str]:
        """Empty the records of deleted segments; those that were made again meanwhile stay."""
        removed = set()
        for path in sorted(may_be_condemned(self._store.list(f"{root}/ledger"), doomed)):
            data = self._store.read(path)
            where = f"{self._store.url}/{path}"
            record = decode_record(data, where, SegmentRecord, fix_of(path))
            if record.prefix not in doomed:
                continue
            empty = record.model_copy(update={"items": (), "files": (), "failures": ()})
            try:
                self._store.put_if(path, empty.to_json(), data)
            except AlreadyExists:
                continue
            removed.add(path)
        return removed

    def _delete_shards(self, prefix: str) -> set[str]:
        removed = set()
        for path in list(self._store.list(prefix)):
            if SHARD_NAME.fullmatch(path.rpartition("/")[2]):
                self._store.delete(path)
                removed.add(path)
            if self._record.lease_until_s - self._clock() < LEASE_S / 2:
                self._change("deleting", frozenset(self._record.condemned))
        return removed
