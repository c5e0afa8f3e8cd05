"""Who renders which row now: expiring claims, at most one alive for each row.

A row's claims are numbered objects, each created once and conditionally: whoever creates the next
number has the row. A claim is renewed while its owner works. When it ran out, or its process is
gone from this machine, the next number may be taken.

A row is quarantined for what it does itself, and a worker's death is the worker's:

- a row that raises an error has failed a try;
- a row whose worker *crashed* while it rendered that row alone has failed a try. Whoever started
  the worker and lived on noted the crash (`hvkf.crashes`): a segmentation fault, or memory ran out;
- any other death (kill -9, a lost node, a frozen machine) is no try. It may still have been the
  row's doing where nobody watched, so that a row on which `MAX_DEATHS` workers ended is quarantined
  all the same: killed by chance, a good row would need as many kills during its own minutes;
- a row on which a worker ended is rendered alone from then on, so that no good row shares its fate.

Tries are counted from the claims themselves each time a row is taken: a crash may be noted later
than the next worker takes the row.
"""

import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Literal, NamedTuple

from hvkf.crashes import find_crash, own_name
from hvkf.errors import AlreadyExists
from hvkf.ledger_paths import number_of, numbered, numbered_path
from hvkf.liveness import ProcessMark, is_running, machine_name, this_process
from hvkf.records import FORMAT_VERSION, Record
from hvkf.storage import Store
from hvkf.stored import read_record

CLAIMS = "claims/render"
RENEWALS_PER_LIFE = 3
SHOWN_MESSAGE_LENGTH = 500
MAX_DEATHS = 10


class Owner(NamedTuple):
    """A worker: the machine and process it is, and a name that no other worker has.

    `worker` is the name that it was started with, where somebody watches how it ends.
    """

    name: str
    machine: str
    process: int
    process_started_s: float
    worker: str = ""


class ClaimRecord(Record):
    """One try at a row; `tries` are the failed ones before it, `message` says how it ended.

    `worker` is the name under which a crash of its owner is noted; `alone` says that no other row
    was rendered together with this one. Times are in seconds since 1970, but for the start of the
    process: since that of the machine.
    """

    format_version: int = FORMAT_VERSION
    owner: str
    machine: str
    process: int
    process_started_s: float
    worker: str = ""
    alone: bool = True
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


class Past(NamedTuple):
    """What a row's claims tell: its failed tries, other workers' deaths on it, its last failure."""

    tries: int = 0
    deaths: int = 0
    message: str = ""


def this_worker() -> Owner:
    """Describe this process, with a name of its own for each call."""
    process = this_process()
    name = f"{socket.gethostname()}:{process.number}:{uuid.uuid4().hex[:8]}"
    return Owner(name, machine_name(), process.number, process.started_s, own_name())


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

    def take(self, identity: str, *, together: bool = False) -> Busy | SetAside | None:
        """Take a row; None when this worker has it now.

        Args:
            identity: The row.
            together: It may be rendered in one batch with others, unless `must_be_alone` says no.
        """
        if self._create(identity, 1, tries=0, alone=not together):
            return None
        number, last = last_claim(self._store, identity)
        if last is None:  # deleted meanwhile
            return Busy(self._clock())
        if last.ended == "" and not self._is_dead(last):
            return Busy(last.expires_s)
        past = self._past(identity, number)
        if past.tries >= self._max_tries:
            return SetAside(past.message)
        if past.deaths >= MAX_DEATHS:
            return SetAside(f"{past.deaths} workers ended without a word while they rendered it")
        alone = not together or past.tries + past.deaths > 0
        if self._create(identity, number + 1, tries=past.tries, alone=alone):
            return None
        return Busy(self._clock() + self._life_s)

    def must_be_alone(self, identity: str) -> bool:
        """Whether a row that is held may not be rendered in one batch with others."""
        held = self._held.get(identity)
        return held is not None and held[1].alone

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
            return self._create(identity, number + 1, tries=claim.tries, alone=claim.alone)

    def end(
        self, identity: str, how: Literal["done", "failed", "released"], message: str = ""
    ) -> None:
        """Give a row back; one that was lost is left to who has it."""
        with self._lock:
            if identity not in self._held:
                return
            number, claim = self._held[identity]
            update = {
                "ended": how,
                "ended_s": self._clock(),
                "message": message[:SHOWN_MESSAGE_LENGTH],
            }
            self._store.put(_path(identity, number), claim.model_copy(update=update).to_json())
            # Only now: a stop amid the writing leaves it to `release_all`.
            del self._held[identity]

    def release_all(self) -> None:
        """Give back all rows, without counting a failed try: this worker stops."""
        for identity in self.held:
            with self._lock:
                number, _ = self._held[identity]
                # A stop may have come before the claim was created, while another created it, or
                # just behind its end.
                claim = read_claim(self._store, identity, number)
                if claim is None or claim.owner != self._owner.name or claim.ended:
                    del self._held[identity]
            self.end(identity, "released")

    def _create(self, identity: str, number: int, *, tries: int, alone: bool) -> bool:
        now_s = self._clock()
        claim = ClaimRecord(
            owner=self._owner.name,
            machine=self._owner.machine,
            process=self._owner.process,
            process_started_s=self._owner.process_started_s,
            worker=self._owner.worker,
            alone=alone,
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

    def _past(self, identity: str, number: int) -> Past:
        """Count what became of a row's claims, up to that number."""
        past = Past()
        found = [read_claim(self._store, identity, one) for one in range(1, number + 1)]
        for claim, after in zip(found, [*found[1:], None], strict=True):
            if claim is None or claim.ended == "released":
                continue
            if claim.ended == "done":  # its video was removed since
                past = Past()
            elif claim.ended == "failed":
                past = Past(past.tries + 1, past.deaths, claim.message)
            elif after is not None and after.owner == claim.owner:
                continue  # it came too late to renew it, and took the row again
            elif claim.alone and (how := find_crash(self._store, claim.worker)):
                past = Past(past.tries + 1, past.deaths, f"its worker crashed ({how})")
            else:
                past = past._replace(deaths=past.deaths + 1)
        return past

    def _is_dead(self, claim: ClaimRecord) -> bool:
        if self._clock() >= claim.expires_s:
            return True
        if claim.machine != self._owner.machine:
            return False
        return not is_running(ProcessMark(claim.process, claim.process_started_s))


def read_claim(store: Store, identity: str, number: int) -> ClaimRecord | None:
    """Read one of a row's claims; None where there is none of that number."""
    try:
        return read_record(store, _path(identity, number), ClaimRecord)
    except FileNotFoundError:
        return None


def last_claim(store: Store, identity: str) -> tuple[int, ClaimRecord | None]:
    """Read the newest claim of a row, and its number; 0 and None where there is none."""
    paths = numbered(store, f"{CLAIMS}/{identity}")
    if not paths:
        return 0, None
    number = number_of(paths[-1])
    return number, read_claim(store, identity, number)


def forget_claims(store: Store, identity: str) -> None:
    """Remove the claims of a row, so that its tries count from none; the newest goes last."""
    for path in store.list(f"{CLAIMS}/{identity}"):
        store.delete(path)


def _path(identity: str, number: int) -> str:
    return numbered_path(f"{CLAIMS}/{identity}", number)
