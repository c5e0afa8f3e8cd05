"""What lies in a run's folder: its record, its checkpoints, its result. Found without torch."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from hvkf.errors import AlreadyExists, BadInput
from hvkf.journal import note_completed
from hvkf.records import CheckpointRecord, RunRecord, TrainResult, digest
from hvkf.storage import Store
from hvkf.stored import read_record
from hvkf.training.settings import check_same_work

COMMIT_NAME = "commit.json"
STEP_NAME = re.compile(r"^step-(\d{8,})$")
LATEST = "latest"


def run_folder(run_id: str) -> str:
    """Where all of a run lies."""
    return f"runs/{run_id}"


def result_path(run_id: str) -> str:
    """Where the record of a run's end lies."""
    return f"{run_folder(run_id)}/result.json"


def work_digest(run: RunRecord) -> str:
    """Name the plan that trains a run."""
    return digest([run.run_id, run.digest])


def read_result(store: Store, run_id: str) -> TrainResult | None:
    """Read how a run ended; None when it did not yet."""
    try:
        return read_record(store, result_path(run_id), TrainResult)
    except FileNotFoundError:
        return None


def read_run(store: Store, run_id: str) -> RunRecord | None:
    """Read what a run is made of; None when it has not begun."""
    try:
        return read_record(store, f"{run_folder(run_id)}/run.json", RunRecord)
    except FileNotFoundError:
        return None


def begin_run(store: Store, run: RunRecord) -> None:
    """Record what a run is made of, once.

    Raises:
        BadInput: the run id was taken by other work.
    """
    try:
        store.put_new(f"{run_folder(run.run_id)}/run.json", run.to_json())
    except AlreadyExists:
        begun = read_run(store, run.run_id)
        assert begun is not None
        check_same_work(begun, run)
    note_completed(store, f"{run_folder(run.run_id)}/run.json")


def step_name(step: int) -> str:
    """Name the folder of the checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """Read a checkpoint folder's name; None for any other name."""
    matched = STEP_NAME.match(name)
    return int(matched.group(1)) if matched else None


class Checkpoints(NamedTuple):
    """A run's checkpoints: the steps of the whole ones, and of those without a commit record."""

    whole: tuple[int, ...]
    partial: tuple[int, ...]


def list_checkpoints(store: Store, run_id: str) -> Checkpoints:
    """Find a run's checkpoints, in order."""
    folder = run_folder(run_id)
    files: dict[int, set[str]] = {}
    for path in store.list(folder):
        name, _, file = path.removeprefix(f"{folder}/").partition("/")
        step = parse_step(name)
        if step is not None and file:
            files.setdefault(step, set()).add(file)
    whole = tuple(sorted(step for step in files if COMMIT_NAME in files[step]))
    return Checkpoints(whole, tuple(sorted(step for step in files if step not in whole)))


def choose_checkpoint(found: Checkpoints, wanted: str | None, run_id: str) -> int | None:
    """Choose the step to go on from; None to begin.

    Args:
        found: The run's checkpoints.
        wanted: None or "latest" for the newest whole one, or the name of one.
        run_id: For the message.

    Raises:
        BadInput: there is no whole checkpoint of that name.
    """
    if wanted in (None, LATEST):
        return found.whole[-1] if found.whole else None
    assert wanted is not None
    step = parse_step(wanted.rstrip("/").rpartition("/")[2])
    if step is None or step not in found.whole:
        whole = ", ".join(map(step_name, found.whole)) or "none"
        reason = "it was not completely written" if step in found.partial else "there is none"
        raise BadInput(
            f"The run {run_id!r} cannot go on from {wanted!r} ({reason}): set "
            f"checkpointing.resume_from_checkpoint to latest or to one of: {whole}."
        )
    return step


def read_checkpoint(store: Store, run_id: str, step: int) -> CheckpointRecord:
    """Read the record of a whole checkpoint."""
    path = f"{run_folder(run_id)}/{step_name(step)}/{COMMIT_NAME}"
    return read_record(store, path, CheckpointRecord)


def stale_steps(
    found: Checkpoints, newest: int, *, every: int | None, keep_back: int | None
) -> list[int]:
    """List the checkpoints before `newest` that are not kept.

    Kept are those of the schedule (each `every` steps) that lie at most `keep_back` steps back; one
    that was written because the run was told to stop goes when a newer one is there.
    """

    def is_kept(step: int) -> bool:
        is_scheduled = every is not None and step % every == 0
        return is_scheduled and (keep_back is None or step >= newest - keep_back)

    older = [step for step in found.whole if step < newest and not is_kept(step)]
    return sorted([*older, *(step for step in found.partial if step < newest)])


def delete_checkpoints(store: Store, run_id: str, steps: Iterable[int]) -> None:
    """Delete checkpoints, each one's commit record first, so that no half is taken for whole."""
    for step in steps:
        folder = f"{run_folder(run_id)}/{step_name(step)}"
        store.delete(f"{folder}/{COMMIT_NAME}")
        for path in list(store.list(folder)):
            store.delete(path)
