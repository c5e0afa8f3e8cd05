"""What is done: segment records, data-set commits and plans, each put once, last, conditionally.

The ledger decides what is done, never a process's exit or a folder's presence: what a killed worker
left behind has no record here, and is never read.
"""

import os
import re
import socket
from collections.abc import Iterable, Sequence
from typing import TypeVar

from hvkf.config import Config
from hvkf.errors import AlreadyExists, BadInput, CorruptData
from hvkf.journal import note_completed
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
from hvkf.stored import explain_damage, read_named, read_record

CommitT = TypeVar("CommitT", bound=Commit)

MAX_SHOWN_FAILURES = 5
ATTEMPT_VARIABLE = "HVKF_ATTEMPT"
NUMBERED = re.compile(r"/\d{6,}\.json")


def attempt_name() -> str:
    """Name this process in records: the job's attempt if one started it, the host, the process."""
    return f"{os.environ.get(ATTEMPT_VARIABLE, 'shell')}@{socket.gethostname()}:{os.getpid()}"


def segment_path(root: str, segment_id: str) -> str:
    """Where the record of a segment lies; `root` is such as scenes/<settings digest>."""
    return f"{root}/ledger/{segment_id}.json"


def put_segment(store: Store, root: str, record: SegmentRecord) -> SegmentRecord:
    """Record that a segment is complete; return the record that counts.

    The first attempt wins. Finding one's own content is success: the answer to an earlier put may
    have been lost. Finding other content is success as well, for whoever won did the same work on
    other hardware; the caller's shards are then garbage.
    """
    path = segment_path(root, record.segment_id)
    try:
        store.put_new(path, record.to_json())
    except AlreadyExists:
        return read_record(store, path, SegmentRecord)
    return record


def read_segment(store: Store, root: str, segment_id: str) -> SegmentRecord:
    """Read a segment's record; CorruptData when a commit names one that is gone."""
    try:
        return read_record(store, segment_path(root, segment_id), SegmentRecord)
    except FileNotFoundError:
        raise CorruptData(
            f"{store.url}/{segment_path(root, segment_id)} is gone although a commit names it: "
            "restore it, or delete the commit and run the stage again."
        ) from None


def latest_commit(store: Store, folder: str, kind: type[CommitT]) -> CommitT | None:
    """Read the newest of a folder's numbered commits; foreign files are no commits."""
    paths = numbered(store, folder)
    return read_record(store, paths[-1], kind) if paths else None


def numbered(store: Store, folder: str) -> list[str]:
    """List a folder's numbered records, in their order; foreign files are left out."""
    found = [path for path in store.list(folder) if NUMBERED.fullmatch(path.removeprefix(folder))]
    return sorted(found, key=lambda path: int(path.rpartition("/")[2].removesuffix(".json")))


def put_commit(store: Store, folder: str, commit: CommitT) -> str:
    """Make a commit the newest in its folder; return its path.

    Raises:
        AlreadyExists: another commit took the number; plan again from that one.
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
    return f"{folder}/{number:06d}.json"


def dataset_folder(root: str, dataset: str) -> str:
    """Where the commits of a data set below `root` (scenes/<digest>, latents/<digest>) lie."""
    return f"{root}/commits/{dataset}"


def latest_dataset(store: Store, root: str, dataset: str) -> DatasetCommit | None:
    """Read the newest commit of a data set below `root`."""
    return latest_commit(store, dataset_folder(root, dataset), DatasetCommit)


def dataset_before(store: Store, root: str, dataset: str, number: int) -> tuple[str, ...]:
    """List the segments of the commit before `number`; none before the first."""
    if number == 1:
        return ()
    path = commit_path(dataset_folder(root, dataset), number - 1)
    return read_named(store, path, DatasetCommit).segments


def put_plan(store: Store, plan: Plan) -> None:
    """Write a plan for workers to read; the same work has the same name."""
    store.put(plan.path, plan.to_json())


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


def pending_parts(store: Store, plan: Plan) -> list[Part]:
    """List the parts that lack an output record; one listing per folder, not a look per record."""
    folders = {output.rpartition("/")[0] for part in plan.parts for output in part.outputs}
    present = {path for folder in folders for path in store.list(folder)}
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
