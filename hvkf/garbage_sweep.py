"""One deletion of garbage; its steps G1 to G5 are those of `hvkf.garbage`, which says why."""

import time
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial

from hvkf import ledger
from hvkf.errors import AlreadyExists, TryAgain
from hvkf.garbage_used import (
    SHARD_NAME,
    Objects,
    read_open_plans,
    segments_of,
    used_segments,
)
from hvkf.journal import delete_record
from hvkf.ledger_paths import may_be_condemned, segment_path
from hvkf.records import DatasetCommit, SegmentRecord
from hvkf.storage import Store
from hvkf.stored import decode_record, read_record
from hvkf.stored_kinds import fix_of
from hvkf.sweeps import LEASE_S, Phase, Sweep, begin_sweep, change_sweep
from hvkf.uses import live_work

Clock = Callable[[], float]


def refuse_while_at_work(store: Store, clock: Clock = time.time) -> None:
    """Refuse to delete while somebody works.

    Raises:
        TryAgain: a command or a worker is at work; it is named, with how it ends.
    """
    uses = live_work(store, clock())
    if uses:
        more = f" And {len(uses) - 1} more." if len(uses) > 1 else ""
        raise TryAgain(f"Nothing was deleted in {store.url}: {uses[0].sentence()}{more}")


class Deletion:
    """A sweep at work."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._record: Sweep = begin_sweep(store, clock)

    def remove(
        self,
        prefixes: Set[str],
        ended: Mapping[str, int],
        others: Callable[[], Iterable[str]],
    ) -> set[str]:
        """Delete folders of shards and other files, and return the paths that are gone.

        Args:
            prefixes: Folders of shards that nothing used when they were listed.
            ended: Folders of commits whose data sets end: the number that was the newest then.
            others: Lists other files, once nobody can begin to use them.
        """
        roots = {prefix.rsplit("/", 2)[0] for prefix in prefixes}
        removed: set[str] = set()
        try:
            self._change("condemning", prefixes)
            refuse_while_at_work(self._store, self._clock)
            for path in others():  # who begins now waits until this has decided
                self._delete(path, removed)
            for root in sorted(roots):
                self._take_commit_numbers(root, ended)
            doomed = prefixes - self._used_prefixes(roots)
            self._change("deleting", doomed)
        except BaseException:  # also a stop: what is spared must count again at once
            self._change("withdrawn", frozenset())
            raise
        for root in sorted(roots):
            self._forget(root, doomed, removed)
        for prefix in sorted(doomed):
            for path in list(self._store.list(prefix)):
                if SHARD_NAME.fullmatch(path.rpartition("/")[2]):
                    self._delete(path, removed)
        self._change("done", doomed)
        return removed

    def _change(self, phase: Phase, prefixes: Set[str]) -> None:
        self._record = change_sweep(self._store, self._record, phase, prefixes, self._clock)

    def _delete(self, path: str, removed: set[str]) -> None:
        delete_record(self._store, path)
        removed.add(path)
        if self._record.lease_until_s - self._clock() < LEASE_S / 2:
            self._change(self._record.phase, frozenset(self._record.condemned))

    def _take_commit_numbers(self, root: str, ended: Mapping[str, int]) -> None:
        """Overtake commits that read the sweeps before this one condemned anything."""
        for folder in Objects(self._store.list(root)).commits:
            if folder in ended and self._end_dataset(folder, ended[folder]):
                continue
            ledger.on_conflict_again(partial(self._take_number, folder), folder)

    def _take_number(self, folder: str) -> None:
        newest = ledger.latest_commit(self._store, folder, DatasetCommit)
        if newest is not None:
            copied = newest.model_copy(update={"number": newest.number + 1})
            ledger.put_commit(self._store, folder, copied)

    def _end_dataset(self, folder: str, number: int) -> bool:
        """Commit that a data set has no segments here any more, unless somebody committed since."""
        dataset = folder.partition("/commits/")[2]
        try:
            ledger.put_commit(self._store, folder, ledger.empty_commit(dataset, number + 1))
        except AlreadyExists:
            return False
        return True

    def _used_prefixes(self, roots: Set[str]) -> set[str]:
        used = set()
        now_s = self._clock()
        for root in roots:
            commits = Objects(self._store.list(root)).commits
            plans = read_open_plans(self._store, now_s)
            for of_root, segment in used_segments(self._store, commits, plans, float("inf")):
                path = segment_path(of_root, segment)
                if of_root == root and self._store.exists(path):
                    used.add(read_record(self._store, path, SegmentRecord).prefix)
        return used

    def _forget(self, root: str, doomed: Set[str], removed: set[str]) -> None:
        """Delete the older commits that list doomed segments, and empty the segments' records.

        The records of segments that were made again meanwhile stay.
        """
        objects = Objects(self._store.list(root))
        found: dict[str, tuple[SegmentRecord, bytes]] = {}
        for path in sorted(may_be_condemned(objects.records, doomed)):
            data = self._store.read(path)
            where = f"{self._store.url}/{path}"
            record = decode_record(data, where, SegmentRecord, fix_of(path))
            if record.prefix in doomed:
                found[path] = (record, data)
        gone = {(root, record.segment_id) for record, _ in found.values()}
        for path in (path for paths in objects.commits.values() for path in paths[:-1]):
            if not gone.isdisjoint(segments_of(self._store, path)):
                self._delete(path, removed)
        for path, (record, data) in found.items():
            empty = record.model_copy(update={"items": (), "files": (), "failures": ()})
            try:
                self._store.put_if(path, empty.to_json(), data)
            except AlreadyExists:
                continue
            removed.add(path)
