"""Turns: jobs of at most one part for each worker, between which another's work may come first.

On a cluster Kueue decides who is next. On one machine the renders of a workspace take turns: the
higher priority first, and among equals whoever had the least time for its weight.
"""

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hvkf.atomic_files import lock as lock_file
from hvkf.errors import CorruptData, HvkfError
from hvkf.jobs.spec import stage_jobs
from hvkf.liveness import ProcessMark, is_running, this_process
from hvkf.model_source import cache_folder
from hvkf.records import Part, Plan, Record, digest
from hvkf.stored import decode_record

logger = logging.getLogger(__name__)

IN_TURNS = ("render",)
RANKS = {"low": 0, "normal": 1, "urgent": 2}
POLL_S = 0.2
MAX_VAIN_TURNS = 3
"""After so many turns in a row that did nothing, the fault is not of single parts."""


class Turns:
    """Which parts the next job does, and which of them are given up while the others go on."""

    def __init__(self, plan: Plan) -> None:
        self._limit = stage_jobs(plan).workers if plan.stage in IN_TURNS else None
        self._given_up: set[int] = set()
        self._num_vain = 0
        self.fault: HvkfError | None = None

    def next(self, pending: Sequence[Part]) -> list[Part]:
        """Choose the next job's parts of those that are pending; none when there is no more."""
        left = [part for part in pending if part.index not in self._given_up]
        return left[: self._limit]

    def give_up(self, turn: Sequence[Part], pending: Sequence[Part], fault: HvkfError) -> None:
        """Leave the parts of a turn that are still pending; the others go on.

        Raises:
            HvkfError: the fault, when turn after turn does nothing.
        """
        left = {part.index for part in turn} & {part.index for part in pending}
        self._num_vain = 0 if len(left) < len(turn) else self._num_vain + 1
        if self._num_vain >= MAX_VAIN_TURNS:
            raise fault
        self._given_up |= left
        if left:
            self.fault = self.fault or fault

    def finish(self) -> None:
        """Say at the end what was given up.

        Raises:
            HvkfError: the first fault for which parts were given up.
        """
        if self.fault is not None:
            raise self.fault


class Asker(Record):
    """A render that takes turns; `used_s` is its workers' time so far for each unit of weight."""

    key: str
    rank: int
    weight: float
    used_s: float
    joined_s: float
    process: int
    process_started_s: float


class _Stored(Record):
    """The file of an order."""

    running: str | None = None
    askers: tuple[Asker, ...] = ()


class LocalOrder:
    """One render's place among those of its workspace on this machine."""

    def __init__(self, file: Path, *, weight: float = 1.0, priority: str = "normal") -> None:
        """Take part in the order of a file.

        Args:
            file: Shared by all who take turns; made if it is not there.
            weight: Share of the time against others of the same priority.
            priority: low, normal or urgent.
        """
        self._file = file
        process = this_process()
        self._me = Asker(
            key=uuid.uuid4().hex,
            rank=RANKS[priority],
            weight=weight,
            used_s=0.0,
            joined_s=time.time(),
            process=process.number,
            process_started_s=process.started_s,
        )

    def __enter__(self) -> "LocalOrder":
        with self._changed() as state:
            others = [asker.used_s for asker in state["askers"].values()]
            # A newcomer has no claim on the time before it came.
            me = self._me.model_copy(update={"used_s": min(others, default=0.0)})
            state["askers"][me.key] = me
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed() as state:
            state["askers"].pop(self._me.key, None)
            if state["running"] == self._me.key:
                state["running"] = None

    @contextlib.contextmanager
    def turn(self, num_workers: int, on_wait: Callable[[], None]) -> Iterator[None]:
        """Wait until it is this render's turn, and have it until the block ends."""
        has_waited = False
        while not self._begin():
            if not has_waited:
                on_wait()
            has_waited = True
            time.sleep(POLL_S)
        begun_s = time.monotonic()
        try:
            yield
        finally:
            self._end((time.monotonic() - begun_s) * num_workers)

    def _begin(self) -> bool:
        with self._changed() as state:
            if state["running"] is not None:
                return False
            state["askers"].setdefault(self._me.key, self._me)  # the file may have been damaged
            first = min(state["askers"].values(), key=_place)
            if first.key == self._me.key:
                state["running"] = first.key
            return bool(first.key == self._me.key)

    def _end(self, seconds: float) -> None:
        with self._changed() as state:
            me = state["askers"].get(self._me.key, self._me)
            used_s = me.used_s + seconds / me.weight
            state["askers"][me.key] = me.model_copy(update={"used_s": used_s})
            state["running"] = None

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Read and write the order, alone; who is gone from this machine is left out."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+", errors="replace") as opened:
            lock_file(opened)
            opened.seek(0)
            text = opened.read()
            stored = self._decoded(text)
            state: dict[str, Any] = {
                "running": stored.running,
                "askers": {asker.key: asker for asker in stored.askers if _is_alive(asker)},
            }
            if state["running"] not in state["askers"]:
                state["running"] = None
            yield state
            listed = [asker.model_dump() for asker in state["askers"].values()]
            opened.seek(0)
            opened.truncate()
            opened.write(json.dumps({"running": state["running"], "askers": listed}))

    def _decoded(self, text: str) -> "_Stored":
        """Read the order; one that was cut off by a crash begins anew, with whoever asks next."""
        if not text:
            return _Stored()
        try:
            return decode_record(text.encode(), str(self._file), _Stored, "it begins anew")
        except CorruptData as fault:
            logger.warning("%s", fault)
            return _Stored()


def _place(asker: Asker) -> tuple[float, ...]:
    return -asker.rank, asker.used_s, asker.joined_s


def _is_alive(asker: Asker) -> bool:
    return is_running(ProcessMark(asker.process, asker.process_started_s))


def local_order(plan: Plan, workspace: str) -> LocalOrder | None:
    """Give the order that a plan's jobs keep on this machine; None for stages without turns."""
    if plan.stage not in IN_TURNS:
        return None
    settings = plan.config.get(plan.stage, {})
    return LocalOrder(
        cache_folder() / "turns" / f"{digest(workspace)}.json",
        weight=settings.get("weight", 1.0),
        priority=settings.get("priority", "normal"),
    )
