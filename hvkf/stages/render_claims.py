"""Who renders which row now: expiring claims, at most one alive for each row.

A row's claims are numbered objects, each created once and conditionally: whoever creates the next
number has the row. A claim is renewed while its owner works. One that ran out, or whose process is
gone from this machine, counts as a failed try, and the next number may be taken.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from hvkf.errors import AlreadyExists
from hvkf.ledger import numbered
from hvkf.liveness import ProcessMark, is_running, this_process
from hvkf.records import FORMAT_VERSION, Record
from hvkf.storage import Store
from hvkf.stored import read_record

CLAIMS = "claims/render"
RENEWALS_PER_LIFE = 3
SHOWN_MESSAGE_LENGTH = 500


class Owner(NamedTuple):
    """A worker: the machine and process it is, and a name that no other worker has."""

    name: str
    machine: str
    process: int
    process_started_s: float


class ClaimRecord(Record):
    """One try at a row; `tries` are the failed ones before it, `message` says how it ended.

    Times are in seconds since 1970, but for the start of the process: since that of the machine.
    """

    format_version: int = FORMAT_VERSION
    owner: str
    machine: str
    process: int
    process_started_s: float
    taken_s: float
    expires_s: float
    tries: int
    ended: Literal["", "done", "failed", "released"] = ""
    ended_s: float | None = None
    message: str = ""


class Busy(NamedTuple):
    """Another worker has the row, at the longest until `until_s` if it falls silent."""

    until_s: float


class SetAside(NamedTuple):
    """The row failed too often; `message` says how it failed last."""

    message: str


def this_worker() -> Owner:
    """Describe this process, with a name of its own for each call."""
    process = this_process()
    name = f"{socket.gethostname()}:{process.number}:{uuid.uuid4().hex[:8]}"
    return Owner(name, _machine(), process.number, process.started_s)


@cache
def _machine() -> str:
    """Name this machine's process numbers: containers have their own, under any host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{uuid.getnode()}"
    return f"{socket.gethostname()}/{boot}/{namespace}"


class Claims:
    """The claims that one worker takes, renews and ends."""

    def __init__(
        self,
        store: Store,
        *,
        life_s: float,
        max_tries: int,
        owner: Owner | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._life_s = life_s
        self._max_tries = max_tries
        self._owner = owner or this_worker()
        self._clock = clock
        self._held: dict[str, tuple[int, ClaimRecord]] = {}
        # One thread renews what another takes and ends.
        self._lock = threading.RLock()

    @property
    def held(self) -> tuple[str, ...]:
        """The rows that this worker has now."""
        return tuple(self._held)

    @property
    def renew_every_s(self) -> float:
        """How often `renew` must be called while rows are held."""
        return self._life_s / RENEWALS_PER_LIFE

    def take(self, identity: str) -> Busy | SetAside | None:
        """Take a row; None when this worker has it now."""
        if self._create(identity, 1, tries=0):
            return None
        number, last = last_claim(self._store, identity)
        if last is None:  # deleted meanwhile
            return Busy(self._clock())
        if last.ended == "" and not self._is_dead(last):
            return Busy(last.expires_s)
        tries = self._failed_tries(last)
        if tries >= self._max_tries:
            return SetAside(last.message or "its worker ended without a word")
        if self._create(identity, number + 1, tries=tries):
            return None
        return Busy(self._clock() + self._life_s)

    def renew(self) -> tuple[str, ...]:
        """Prolong what is held; returns the rows that were lost because this came too late."""
        return tuple(identity for identity in self.held if not self._renew(identity))

    def _renew(self, identity: str) -> bool:
        """Prolong a claim, or take its row again if it ran out and no one else has it."""
        with self._lock:
            if identity not in self._held:  # ended meanwhile by the worker's other thread
                return True
            number, claim = self._held[identity]
            renewed = claim.model_copy(update={"expires_s": self._clock() + self._life_s})
            if self._clock() < claim.expires_s:
                self._store.put(_path(identity, number), renewed.to_json())
            if self._clock() < claim.expires_s:
                self._held[identity] = (number, renewed)
                return True
            # Another may have found it run out, even if a slow put landed since: whoever creates
            # the next number has the row.
            return self._create(identity, number + 1, tries=claim.tries)

    def end(
        self, identity: str, how: Literal["done", "failed", "released"], message: str = ""
    ) -> None:
        """Give a row back; one that was lost is left to who has it."""
        with self._lock:
            if identity not in self._held:
                return
            number, claim = self._held.pop(identity)
            update = {
                "ended": how,
                "ended_s": self._clock(),
                "message": message[:SHOWN_MESSAGE_LENGTH],
            }
            self._store.put(_path(identity, number), claim.model_copy(update=update).to_json())

    def release_all(self) -> None:
        """Give back all rows, without counting a failed try: this worker stops."""
        for identity in self.held:
            self.end(identity, "released")

    def _create(self, identity: str, number: int, *, tries: int) -> bool:
        now_s = self._clock()
        claim = ClaimRecord(
            owner=self._owner.name,
            machine=self._owner.machine,
            process=self._owner.process,
            process_started_s=self._owner.process_started_s,
            taken_s=now_s,
            expires_s=now_s + self._life_s,
            tries=tries,
        )
        with self._lock:
            self._held[identity] = (number, claim)
            try:
                self._store.put_new(_path(identity, number), claim.to_json())
            except AlreadyExists:
                del self._held[identity]
                return False
            return True

    def _failed_tries(self, last: ClaimRecord) -> int:
        if last.ended == "done":  # its video was removed since
            return 0
        return last.tries + (last.ended in ("", "failed"))

    def _is_dead(self, claim: ClaimRecord) -> bool:
        if self._clock() >= claim.expires_s:
            return True
        if claim.machine != self._owner.machine:
            return False
        return not is_running(ProcessMark(claim.process, claim.process_started_s))


def last_claim(store: Store, identity: str) -> tuple[int, ClaimRecord | None]:
    """Read the newest claim of a row, and its number; 0 and None where there is none."""
    paths = numbered(store, f"{CLAIMS}/{identity}")
    if not paths:
        return 0, None
    return int(PurePosixPath(paths[-1]).stem), read_record(store, paths[-1], ClaimRecord)


def forget_claims(store: Store, identity: str) -> None:
    """Remove the claims of a row, so that its tries count from none; the newest goes last."""
    for path in store.list(f"{CLAIMS}/{identity}"):
        store.delete(path)


def _path(identity: str, number: int) -> str:
    return f"{CLAIMS}/{identity}/{number:06d}.json"
