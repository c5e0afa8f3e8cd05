"""What nothing refers to, and how it is deleted without ever taking what somebody needs.

Used are: the segments that the newest commit of any data set lists; those that a plan makes or
reads which was stored within the last week and is not committed (`hvkf.uses`); LoRAs that a
registered name's history names; and everything, while a command or a worker is at work: then
nothing is deleted, and the error says who works. Older commits, which list dropped buckets and
videos, go with their segments. Latents of other settings and the folders of runs that came to
nothing go on request alone. Files that are not ours (`.DS_Store`, notes) are named and left alone.

Leases protect against surprises, not against a frozen process: one that was suspended for a day
does not know that its lease has ended. What follows needs no clock. Its only conditions are those
of `hvkf.storage`: a put is seen by every later read and list, and `put_new` succeeds once.

A deletion (a *sweep*, `gc/NNNNNN.json`) of folders of shards, each a segment record's `prefix`:

 G1. put the sweep's record with the prefixes that it condemns;
 G2. withdraw it if a process is at work after all;
 G3. take the next commit number of each data set concerned, with a copy of its newest commit;
 G4. read the newest commits and all plans, spare what they use, and put the record with the rest;
 G5. delete older commits that list a condemned segment, overwrite the records of the condemned
     segments with empty ones, and delete their shards.

A commit (`ledger.commit_dataset`):

 C1. register the data set by its commit 0, if it has none;
 C2. read the newest commit's number n;
 C3. read the sweeps and the records of segments that commit n does not list: condemned ones are
     missing, and end the commit;
 C4. take number n + 1 with `put_new`; if it is taken, go to C2.

A writer of a segment:

 W1. read the sweeps, and choose a prefix that none has condemned;
 W2. upload; then put the segment's record if there is none, or in place of a condemned one.

Claim: no commit that is or becomes the newest lists a segment whose shards a sweep deletes.
 - Let a commit take number m of a data set, listing a segment with prefix p that commit m - 1 does
   not list, and let a sweep have condemned p. If C3 came after G1, the commit saw it and ended. So
   C3 came before G1, and C2 before that. At G3 the sweep lists the data set (C1 came before C2) and
   takes a number: had it taken m or a later one before C4, then C4 had found m taken, gone back to
   C2, and met the case above. So C4 came before G3, and G4 sees this commit or a newer one. If a
   newer one dropped the segment, nobody lists it any more, and who wants it again meets the case
   above.
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

import time
from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

from hvkf.errors import BadInput
from hvkf.garbage_runs import ABANDONED, REFUSED, useless_runs
from hvkf.garbage_sweep import Clock, Deletion, refuse_while_at_work
from hvkf.garbage_used import (
    Objects,
    Segment,
    foreign_records,
    read_open_plans,
    segments_of,
    unused_shards,
    used_segments,
)
from hvkf.ledger_paths import number_of
from hvkf.records import Plan
from hvkf.registry import unused_loras
from hvkf.storage import Store
from hvkf.uses import drop_ended_work

SHARD_ROOTS = ("scenes", "latents")
PARTIAL_AGE_S = 3600.0
"""A file that is being written is none that a killed process left."""
UNFINISHED, UNCOMMITTED, REPLACED = "unfinished", "uncommitted", "replaced"
UNPROMOTED, OTHER_LATENTS = "unpromoted", "other-latents"
KINDS = {
    UNFINISHED: "what killed processes were writing",
    UNCOMMITTED: "shards and segments that no commit lists",
    REPLACED: "segments that only older commits list: dropped buckets, videos and captions",
    UNPROMOTED: "LoRAs that were kept for a promotion that never came about",
    OTHER_LATENTS: "latents of other settings than those committed last for the data set",
    ABANDONED: "runs without a result",
    REFUSED: "runs that the gate judged and never promoted",
}
ON_REQUEST = (OTHER_LATENTS, ABANDONED, REFUSED)


class GarbageFile(NamedTuple):
    """A stored object that nothing refers to."""

    path: str
    size: int
    kind: str


class Garbage(NamedTuple):
    """What can be deleted, and files that are none of ours.

    `prefixes` are the folders of shards among `files`, `ended` the folders of commits whose data
    sets have no segments there any more when it is deleted, with their newest numbers.
    """

    files: tuple[GarbageFile, ...]
    prefixes: frozenset[str]
    foreign: tuple[str, ...]
    ended: tuple[tuple[str, int], ...] = ()

    def kinds(self) -> dict[str, list[GarbageFile]]:
        """Sort the files by kind."""
        found: dict[str, list[GarbageFile]] = {kind: [] for kind in KINDS}
        for file in self.files:
            found[file.kind].append(file)
        return {kind: files for kind, files in found.items() if files}

    def only(self, also: Set[str]) -> "Garbage":
        """Leave out the kinds that are deleted on request and are not in `also`.

        Raises:
            BadInput: there is no such kind.
        """
        if unknown := sorted(also - set(ON_REQUEST)):
            raise BadInput(f"{unknown[0]!r} is no kind to ask for: {', '.join(ON_REQUEST)} are.")
        out = set(ON_REQUEST) - also
        files = tuple(file for file in self.files if file.kind not in out)
        folders = {file.path.rpartition("/")[0] for file in files}
        ended = () if OTHER_LATENTS in out else self.ended
        return self._replace(files=files, prefixes=self.prefixes & folders, ended=ended)


def find_garbage(
    store: Store, min_age_s: float, clock: Clock = time.time, *, unused_for_s: float = 0.0
) -> Garbage:
    """List what nothing refers to and is older than `min_age_s`; changes nothing.

    Args:
        store: The workspace.
        min_age_s: Leave what is younger.
        clock: Seconds since 1970.
        unused_for_s: As `min_age_s`, of the kinds that are deleted on request.
    """
    now_s = clock()
    plans = read_open_plans(store, now_s)
    files: list[GarbageFile] = []
    prefixes: set[str] = set()
    ended: list[tuple[str, int]] = []
    foreign = [*store.list_root(), *foreign_records(store)]
    for kind in SHARD_ROOTS:
        objects = Objects(store.list(kind))
        foreign += objects.foreign
        if kind == "latents":
            ended = list(_other_latents(store, objects.commits, now_s - unused_for_s))
        found = list(_unused(store, objects, plans, now_s - min_age_s, {f for f, _ in ended}))
        files += found
        prefixes |= {file.path.rpartition("/")[0] for file in found} & objects.shards.keys()
    partial_age_s = max(min_age_s, PARTIAL_AGE_S)
    files += _old(store, UNFINISHED, store.list_partial(), now_s - partial_age_s)
    files += _old(store, UNPROMOTED, unused_loras(store), now_s - min_age_s)
    for run in useless_runs(store, plans, now_s - max(min_age_s, unused_for_s)):
        files += _old(store, run.kind, run.paths, now_s)
    return Garbage(tuple(files), frozenset(prefixes), tuple(sorted(foreign)), tuple(ended))


def _other_latents(
    store: Store, commits: dict[str, list[str]], until_s: float
) -> Iterator[tuple[str, int]]:
    """Yield the folders of commits, and their newest numbers, whose latents are of other settings.

    Of a data set's latents those count that were committed last.
    """
    by_dataset: dict[str, list[tuple[float, str, str]]] = {}
    for folder, paths in commits.items():
        if segments_of(store, paths[-1]):
            made_s = min(store.stat(path).modified_s for path in _same(store, paths))
            dataset = folder.partition("/commits/")[2]
            by_dataset.setdefault(dataset, []).append((made_s, folder, paths[-1]))
    for found in by_dataset.values():
        for made_s, folder, newest in sorted(found)[:-1]:
            if made_s <= until_s:
                yield folder, number_of(newest)


def _same(store: Store, paths: list[str]) -> Iterator[str]:
    """Yield the commits that list what the newest lists: `hvkf gc` commits the same again."""
    newest = segments_of(store, paths[-1])
    for path in reversed(paths):
        if segments_of(store, path) != newest:
            return
        yield path


def _unused(
    store: Store, objects: Objects, plans: list[Plan], until_s: float, ended: Set[str]
) -> Iterator[GarbageFile]:
    """Yield the files of segments that nothing uses, or only latents of other settings."""
    commits = objects.commits
    used = used_segments(store, commits, plans, until_s)
    staying = {folder: paths for folder, paths in commits.items() if folder not in ended}
    other: set[Segment] = set()
    for folder in ended:
        other |= segments_of(store, commits[folder][-1])
    other -= used_segments(store, staying, plans, until_s)
    listed: set[Segment] = set()
    for path in (path for paths in commits.values() for path in paths):
        listed |= segments_of(store, path)
    for unused in unused_shards(store, objects, used - other):
        kind = UNCOMMITTED
        if unused.segment in other:
            kind = OTHER_LATENTS
        elif unused.segment in listed:
            kind = REPLACED
        found = list(_old(store, kind, unused.paths, until_s))
        if len(found) == len(unused.paths):
            yield from found


def _old(store: Store, kind: str, paths: Iterable[str], until_s: float) -> Iterator[GarbageFile]:
    for path in paths:
        try:
            info = store.stat(path)
        except FileNotFoundError:  # its writer finished meanwhile
            continue
        if info.modified_s <= until_s:
            yield GarbageFile(path, info.size, kind)


def remove_garbage(store: Store, garbage: Garbage, clock: Clock = time.time) -> list[GarbageFile]:
    """Delete what was found, but for what is used since; return what was deleted.

    Raises:
        TryAgain: a command or a worker is at work; it is named, with how it ends.
    """
    refuse_while_at_work(store, clock)
    by_kind = garbage.kinds()

    def others() -> Iterator[str]:
        unused = set(unused_loras(store))
        yield from (file.path for file in by_kind.get(UNFINISHED, ()))
        yield from (file.path for file in by_kind.get(UNPROMOTED, ()) if file.path in unused)
        listed = {file.path for kind in (ABANDONED, REFUSED) for file in by_kind.get(kind, ())}
        if listed:  # who used a run since it was listed has touched it, or plans with it
            for run in useless_runs(store, read_open_plans(store, clock()), float("inf")):
                if listed.issuperset(run.paths):
                    yield from run.paths

    removed = Deletion(store, clock).remove(garbage.prefixes, dict(garbage.ended), others)
    drop_ended_work(store, clock())
    return [file for file in garbage.files if file.path in removed]
