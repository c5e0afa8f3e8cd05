"""What is done: segment records, data-set commits and plans, each put once, last, conditionally.

The ledger decides what is done, never a process's exit or a folder's presence: what a killed worker
left behind has no record here, and is never read.
"""

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from hvkf.config import Config
from hvkf.errors import AlreadyExists, BadInput, CorruptData, HvkfError, TryAgain
from hvkf.journal import note_completed
from hvkf.ledger_paths import may_be_condemned, numbered, numbered_path, segment_path
from hvkf.records import (
    Commit,
    DatasetCommit,
    Failure,
    Part,
    Plan,
    SegmentRecord,
    plan_path,
)
from hvkf.storage import Store
from hvkf.stored import decode_record, explain_damage, read_record
from hvkf.stored_kinds import fix_of
from hvkf.sweeps import condemned
from hvkf.uses import open_plan

CommitT = TypeVar("CommitT", bound=Commit)
ResultT = TypeVar("ResultT")

MAX_SHOWN_FAILURES = 5
MAX_CONFLICTS = 50
CONFLICT_WAIT_S = 0.02
ATTEMPT_VARIABLE = "HVKF_ATTEMPT"


class Committed(NamedTuple):
    """A data set's commit, where it lies, and whether it is new."""

    path: str
    commit: DatasetCommit
    is_new: bool


def attempt_name() -> str:
    """Name this process in records: the job's attempt if one started it, the host, the process."""
    return f"{os.environ.get(ATTEMPT_VARIABLE, 'shell')}@{socket.gethostname()}:{os.getpid()}"


def put_segment(store: Store, root: str, record: SegmentRecord) -> SegmentRecord:
    """Record that a segment is complete; return the record that counts.

    The first attempt wins. Finding one's own content is success: the answer to an earlier put may
    have been lost. Finding other content is success as well, for whoever won did the same work on
    other hardware; the caller's shards are then garbage. A record whose shards `hvkf gc` has
    condemned does not count, and is replaced.
    """
    path = segment_path(root, record.segment_id)
    found: bytes | None = None
    while True:
        with contextlib.suppress(AlreadyExists):
            store.put_if(path, record.to_json(), found)
            return record
        found = store.read(path)
        other = decode_record(found, f"{store.url}/{path}", SegmentRecord, fix_of(path))
        if not is_condemned(store, other):
            return other


def is_condemned(store: Store, record: SegmentRecord) -> bool:
    """Whether `hvkf gc` has condemned a segment's shards; a deleted segment's record says nothing
    else.
    """
    return record.prefix in condemned(store)


def missing_segments(store: Store, root: str, segment_ids: Iterable[str]) -> set[str]:
    """Tell which segments are not made, or were condemned by `hvkf gc` since."""
    paths = {segment_path(root, segment_id): segment_id for segment_id in segment_ids}
    absent = {path for path in paths if not store.exists(path)}
    absent |= _condemned_records(store, paths.keys() - absent)
    return {paths[path] for path in absent}


def _condemned_records(store: Store, paths: Iterable[str]) -> set[str]:
    """Tell which of these segment records name condemned shards."""
    gone = condemned(store)
    return {
        path
        for path in may_be_condemned(paths, gone)
        if read_record(store, path, SegmentRecord).prefix in gone
    }


def free_prefix(store: Store, prefix: str) -> str:
    """Choose the name of a new folder of shards: a condemned one is never used again."""
    gone = condemned(store)
    names = (prefix, *(f"{prefix}-{number}" for number in range(1, len(gone) + 1)))
    return next(name for name in names if name not in gone)


def read_segment(store: Store, root: str, segment_id: str) -> SegmentRecord:
    """Read a segment's record; CorruptData when a commit names one that is gone."""
    try:
        return read_record(store, segment_path(root, segment_id), SegmentRecord)
    except FileNotFoundError:
        raise CorruptData(
            f"{store.url}/{segment_path(root, segment_id)} is gone although a commit names it: "
            "restore it, or delete the commit and run the stage again."
        ) from None


def read_new_segments(store: Store, root: str, segment_ids: Iterable[str]) -> list[SegmentRecord]:
    """Read the records of segments that no commit names yet.

    Raises:
        TryAgain: one is not made, or `hvkf gc` has condemned it since.
    """
    gone = condemned(store)
    records = []
    for segment_id in segment_ids:
        path = segment_path(root, segment_id)
        try:
            record = read_record(store, path, SegmentRecord)
        except FileNotFoundError:
            record = None
        if record is None or record.prefix in gone:
            raise TryAgain(
                f"The segment {store.url}/{path} is not made, or `hvkf gc` removed it since: run "
                "the same command again, which makes what is missing."
            )
        records.append(record)
    return records


def latest_commit(store: Store, folder: str, kind: type[CommitT]) -> CommitT | None:
    """Read the newest of a folder's numbered commits; foreign files are no commits."""
    paths = numbered(store, folder)
    return read_record(store, paths[-1], kind) if paths else None


def put_commit(store: Store, folder: str, commit: CommitT) -> str:
    """Make a commit the newest in its folder; return its path.

    Raises:
        AlreadyExists: another commit took the number; commit again on top of that one.
    """
    path = commit_path(folder, commit.number)
    try:
        store.put_new(path, commit.to_json())
    except AlreadyExists:
        if read_record(store, path, type(commit)) != commit:
            raise
    note_completed(store, path)
    return path


def commit_path(folder: str, number: int) -> str:
    """Where a commit lies."""
    return numbered_path(folder, number)


def on_conflict_again(
    commit: Callable[[], ResultT],
    what: str,
    conflict: type[HvkfError] = AlreadyExists,
) -> ResultT:
    """Commit; when another commit came in between, commit again on top of that one.

    Args:
        commit: Reads what is newest, and puts the next number.
        what: What is committed, for people.
        conflict: How `commit` says that another came in between.

    Raises:
        TryAgain: it was overtaken again and again.
    """
    for attempt in range(MAX_CONFLICTS):
        try:
            return commit()
        except conflict:
            time.sleep(random.uniform(0, CONFLICT_WAIT_S * attempt))
    raise TryAgain(
        f"{MAX_CONFLICTS} other commits of {what} came in between, one after the other: run the "
        "same command again, which only commits."
    )


def dataset_folder(root: str, dataset: str) -> str:
    """Where a data set's commits below `root` (scenes/<stage version>, latents/<digest>) lie."""
    return f"{root}/commits/{dataset}"


def latest_dataset(store: Store, root: str, dataset: str) -> DatasetCommit | None:
    """Read the newest commit of a data set below `root`; None where nothing is committed yet."""
    commit = latest_commit(store, dataset_folder(root, dataset), DatasetCommit)
    return commit if commit is not None and commit.segments else None


def dataset_before(store: Store, root: str, dataset: str, number: int) -> tuple[str, ...] | None:
    """List the segments of the commit before `number`; none before the first.

    None where `hvkf gc` deleted that commit: a newer one has replaced it, over a week ago.
    """
    if number == 1:
        return ()
    path = commit_path(dataset_folder(root, dataset), number - 1)
    try:
        return read_record(store, path, DatasetCommit).segments
    except FileNotFoundError:
        return None


def empty_commit(dataset: str, number: int = 0) -> DatasetCommit:
    """Make the commit that says only that a data set is about to be committed."""
    return DatasetCommit(
        dataset=dataset, number=number, plan="", catalog="", segments=(), num_items=0, num_failed=0
    )


def commit_dataset(
    store: Store,
    root: str,
    dataset: str,
    draft: Callable[[DatasetCommit | None], DatasetCommit],
) -> Committed:
    """Commit a data set on top of whatever is newest, as often as another commit comes in between.

    The order of the steps is what makes it safe beside `hvkf gc`, see `hvkf.garbage`: the data set
    is registered (commit 0), then the newest commit is read, then the segments are looked at, and
    last the next number is taken conditionally.

    Args:
        store: The workspace.
        root: Where the segments lie.
        dataset: The data set.
        draft: Makes the commit on top of the newest (None: the first), its number still open; the
            newest itself says that there is nothing to do.

    Raises:
        TryAgain: `hvkf gc` has condemned a segment, or commit after commit came in between.
    """
    folder = dataset_folder(root, dataset)
    first = commit_path(folder, 0)
    if not numbered(store, folder):
        with contextlib.suppress(AlreadyExists):
            store.put_new(first, empty_commit(dataset).to_json())

    def attempt() -> Committed:
        newest = latest_commit(store, folder, DatasetCommit)
        assert newest is not None
        previous = newest if newest.segments else None
        drafted = draft(previous)
        if drafted is previous:
            return Committed(commit_path(folder, newest.number), drafted, is_new=False)
        kept = set() if previous is None else set(previous.segments)
        read_new_segments(store, root, (s for s in drafted.segments if s not in kept))
        commit = drafted.model_copy(update={"number": newest.number + 1})
        return Committed(put_commit(store, folder, commit), commit, is_new=True)

    return on_conflict_again(attempt, f"data set {dataset!r}")


def put_plan(store: Store, plan: Plan) -> None:
    """Write a plan for workers to read; the same work has the same name.

    Until its result is committed, `hvkf gc` leaves alone what it makes (for a week).
    """
    store.put(plan.path, plan.to_json())
    open_plan(store, plan)  # second: it names the plan, which is missed where it is gone


def read_plan(store: Store, stage: str, plan_digest: str) -> Plan:
    """Read a plan that `put_plan` wrote.

    Raises:
        BadInput: there is none.
        CorruptData: it does not read, or its settings are none.
    """
    path = plan_path(stage, plan_digest)
    try:
        found = read_record(store, path, Plan)
    except FileNotFoundError:
        raise BadInput(
            f"There is no {stage} plan {plan_digest} in {store.url}: run `hvkf {stage} plan` first."
        ) from None
    with explain_damage(store, path):
        Config.model_validate(found.config)
    return found


def planned_outputs(store: Store, stage: str, plan_digest: str) -> Iterator[str]:
    """Yield what a stored plan makes; nothing where the plan is gone."""
    try:
        plan = read_record(store, plan_path(stage, plan_digest), Plan)
    except FileNotFoundError:
        return
    for part in plan.parts:
        yield from part.outputs


def pending_parts(store: Store, plan: Plan) -> list[Part]:
    """List the parts that lack an output record; one listing per folder, not a look per record."""
    folders = {output.rpartition("/")[0] for part in plan.parts for output in part.outputs}
    present = {path for folder in folders for path in store.list(folder)}
    outputs = [output for part in plan.parts for output in part.outputs if output in present]
    present -= _condemned_records(store, outputs)
    return [part for part in plan.parts if not present.issuperset(part.outputs)]


def check_failures(
    failures: Iterable[Failure], num_total: int, max_fraction: float, setting: str
) -> None:
    """Fail a stage whose failures are too many.

    Raises:
        BadInput: naming the first failures and the setting that allows more.
    """
    listed = list(failures)
    if len(listed) <= max_fraction * num_total:
        return
    raise BadInput(
        f"{len(listed)} of {num_total} failed, more than {setting}={max_fraction} allows: "
        f"{first_failures(listed)}."
    )


def first_failures(failures: Sequence[Failure]) -> str:
    """Write the first failures with their reasons, and how many more there are."""
    told = "; ".join(
        f"{failure.source}: {failure.message} [{failure.code}]"
        for failure in failures[:MAX_SHOWN_FAILURES]
    )
    more = len(failures) - MAX_SHOWN_FAILURES
    return told + (f"; and {more} more" if more > 0 else "")
