"""Turns: jobs of at most one part for each worker, between which another's work may come first.

On a cluster Kueue decides who is next. On one machine the renders of a workspace take turns: the
higher priority first, and among equals whoever had the least time for its weight.

A turn may take many minutes. When somebody more urgent waits, its workers end it early, each at the
end of its row, or amid a row that goes on for longer than the more urgent one should wait: then the
row is given back, and rendered again later. The file of the order is how they know.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvkf.atomic_files import lock as lock_file
from hvkf.errors import CorruptData, HvkfError
from hvkf.jobs.spec import stage_jobs
from hvkf.liveness import ProcessMark, is_running, this_process
from hvkf.model_source import cache_folder
from hvkf.records import Part, Plan, Record, digest
from hvkf.shown import counted
from hvkf.stored import decode_record

logger = logging.getLogger(__name__)

IN_TURNS = ("render",)
RANKS = {"low": 0, "normal": 1, "urgent": 2}
POLL_S = 0.2
ORDER_VARIABLE = "HVKF_ORDER"
LOOK_EVERY_S = 2.0
SHOWN_SECONDS = 90
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
    """A render that takes turns; `used_s` is its workers' time so far for each unit of weight.

    `waits_since_s` is set while it waits for its turn, `turn_since_s` while it has one. Times are
    in seconds since 1970, but for the start of the process: since that of the machine.
    """

    key: str
    name: str = ""
    rank: int
    weight: float
    used_s: float
    joined_s: float
    waits_since_s: float | None = None
    turn_since_s: float | None = None
    turn_minutes: float = 0.0
    process: int
    process_started_s: float

    def sentence(self, now_s: float, gives_way_s: float | None) -> str:
        """Say who has the turn, and for about how long.

        Args:
            now_s: The time.
            gives_way_s: After how long it gives way, at the latest; None: at its turn's end.
        """
        priority = next(name for name, rank in RANKS.items() if rank == self.rank)
        who = f"{self.name or 'another render'} ({priority}, process {self.process})"
        if gives_way_s is not None:
            return f"{who} gives way at the end of its row, within {_written(gives_way_s)}"
        if self.turn_since_s is None:
            return f"{who} is before it"
        left_s = 60 * self.turn_minutes - (now_s - self.turn_since_s)
        return f"{who} has it for about {_written(left_s)}" if left_s > 0 else f"{who} ends its own"


def _written(seconds: float) -> str:
    if seconds < SHOWN_SECONDS:
        return f"{seconds:.0f} s"
    return counted(round(seconds / 60), "minute")


class _Stored(Record):
    """The file of an order."""

    running: str | None = None
    askers: tuple[Asker, ...] = ()


class LocalOrder:
    """One render's place among those of its workspace on this machine."""

    def __init__(
        self,
        file: Path,
        *,
        name: str = "",
        weight: float = 1.0,
        priority: str = "normal",
        turn_minutes: float = 0.0,
        urgent_within_s: float = 0.0,
    ) -> None:
        """Take part in the order of a file.

        Args:
            file: Shared by all who take turns; made if it is not there.
            name: What others that wait are told.
            weight: Share of the time against others of the same priority.
            priority: low, normal or urgent.
            turn_minutes: How long a turn takes, about.
            urgent_within_s: How long this waits for who is less urgent, at the longest.
        """
        self._file = file
        self._urgent_within_s = urgent_within_s
        process = this_process()
        self._me = Asker(
            key=uuid.uuid4().hex,
            name=name,
            turn_minutes=turn_minutes,
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
    def turn(self, num_workers: int, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Wait until it is this render's turn, and have it until the block ends.

        Args:
            num_workers: How many workers it has.
            on_wait: Is told, once, for whom this waits and about how long.
        """
        has_waited = False
        while (before := self._begin()) is not None:
            if not has_waited:
                within_s = self._urgent_within_s if before.rank < self._me.rank else None
                on_wait(before.sentence(time.time(), within_s))
            has_waited = True
            time.sleep(POLL_S)
        begun_s = time.monotonic()
        try:
            yield
        finally:
            self._end((time.monotonic() - begun_s) * num_workers)

    def _begin(self) -> Asker | None:
        """Take the turn if it is this one's; return who is before it if not."""
        with self._changed() as state:
            askers, now_s = state["askers"], time.time()
            me: Asker = askers.setdefault(self._me.key, self._me)  # the file may have been damaged
            before: Asker = min(askers.values(), key=_place)
            if state["running"] is not None:
                before = askers[state["running"]]
            elif before.key == me.key:
                state["running"] = me.key
                update = {"waits_since_s": None, "turn_since_s": now_s}
                askers[me.key] = me.model_copy(update=update)
                return None
            if me.waits_since_s is None:
                askers[me.key] = me.model_copy(update={"waits_since_s": now_s})
            return before

    def _end(self, seconds: float) -> None:
        with self._changed() as state:
            me = state["askers"].get(self._me.key, self._me)
            used_s = me.used_s + seconds / me.weight
            update = {"used_s": used_s, "turn_since_s": None}
            state["askers"][me.key] = me.model_copy(update=update)
            state["running"] = None

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Read and write the order, alone; who is gone from this machine is left out."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+", errors="replace") as opened:
            lock_file(opened)
            opened.seek(0)
            text = opened.read()
            stored = _decoded(self._file, text)
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


def _decoded(file: Path, text: str) -> _Stored:
    """Read the order; one that was cut off by a crash begins anew, with whoever asks next."""
    if not text:
        return _Stored()
    try:
        return decode_record(text.encode(), str(file), _Stored, "it begins anew")
    except CorruptData as fault:
        logger.warning("%s", fault)
        return _Stored()


def _place(asker: Asker) -> tuple[float, ...]:
    return -asker.rank, asker.used_s, asker.joined_s


def _is_alive(asker: Asker) -> bool:
    return is_running(ProcessMark(asker.process, asker.process_started_s))


class Giving(NamedTuple):
    """That somebody more urgent waits; `at_once`: it has waited for as long as it should."""

    at_once: bool


class GiveWay:
    """Tells a worker when to give way to somebody more urgent; never where nobody takes turns."""

    def __init__(self, priority: str, urgent_within_s: float) -> None:
        named = os.environ.get(ORDER_VARIABLE)
        self._file = Path(named) if named else None
        self._rank = RANKS[priority]
        self._urgent_within_s = urgent_within_s
        self._looked_s = float("-inf")
        self._found: Giving | None = None

    def look(self, *, now: bool = True) -> Giving | None:
        """Say whether somebody more urgent waits; unless `now`, looks every few seconds only."""
        if self._file is None:
            return None
        if now or time.monotonic() - self._looked_s > LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            self._found = self._read(self._file)
        return self._found

    def _read(self, file: Path) -> Giving | None:
        try:
            with file.open(errors="replace") as opened:
                lock_file(opened, fcntl.LOCK_SH)
                askers = _decoded(file, opened.read()).askers
        except FileNotFoundError:
            return None
        waits = [
            asker.waits_since_s
            for asker in askers
            if asker.rank > self._rank and asker.waits_since_s is not None and _is_alive(asker)
        ]
        if not waits:
            return None
        return Giving(at_once=time.time() - min(waits) >= self._urgent_within_s)


def order_file(workspace: str) -> Path:
    """Where the order of a workspace's renders on this machine lies."""
    return cache_folder() / "turns" / f"{digest(workspace)}.json"


def local_order(plan: Plan, workspace: str) -> LocalOrder | None:
    """Give the order that a plan's jobs keep on this machine; None for stages without turns."""
    if plan.stage not in IN_TURNS:
        return None
    settings = plan.config.get(plan.stage, {})
    return LocalOrder(
        order_file(workspace),
        name=f"{plan.stage} {plan.digest[:8]}",
        weight=settings.get("weight", 1.0),
        priority=settings.get("priority", "normal"),
        turn_minutes=settings.get("part_minutes", 0.0),
        urgent_within_s=settings.get("urgent_within_s", 0.0),
    )
