"""Sweeps: what `hvkf gc` has condemned, so that no one relies on it any more.

A sweep is one deletion of garbage. Before it deletes anything, its record names the folders of
shards that it condemns. Whoever makes, looks for or commits segments reads these records: a segment
whose shards are condemned counts as not made, is made again under another name, and enters no
commit. A condemned name is never used again, so that a sweep that was frozen half-way and goes on
days later deletes nothing that counts. `hvkf.garbage` says why this is safe.
"""

import time
from collections.abc import Callable, Set
from typing import Literal
from weakref import WeakKeyDictionary

from hvkf.errors import AlreadyExists, TryAgain
from hvkf.journal import note_completed
from hvkf.ledger_paths import numbered, numbered_path
from hvkf.liveness import ProcessMark, is_running, machine_name, this_holder
from hvkf.records import FORMAT_VERSION, Record
from hvkf.storage import Store
from hvkf.stored import read_record

FOLDER = "gc"
LEASE_S = 120.0
POLL_S = 0.2

Phase = Literal["looking", "condemning", "deleting", "done", "withdrawn"]


class Sweep(Record):
    """One deletion of garbage; `condemned` are folders of shards.

    While it is `condemning`, the sweep still decides which of them it spares. Times are in seconds
    since 1970, but for the start of the process: since that of the machine.
    """

    format_version: int = FORMAT_VERSION
    number: int
    owner: str
    machine: str
    process: int
    process_started_s: float
    started_s: float
    lease_until_s: float
    phase: Phase
    condemned: tuple[str, ...] = ()

    def is_at_work(self, now_s: float) -> bool:
        """Whether the process of an unfinished sweep is still heard of."""
        if self.phase in ("done", "withdrawn") or now_s >= self.lease_until_s:
            return False
        if self.machine != machine_name():
            return True
        return is_running(ProcessMark(self.process, self.process_started_s))


_DONE: "WeakKeyDictionary[Store, dict[str, Sweep]]" = WeakKeyDictionary()
"""Records of sweeps that have ended, which change no more."""


def read_sweeps(store: Store) -> list[Sweep]:
    """Read the records of all sweeps, oldest first."""
    return [read_record(store, path, Sweep) for path in numbered(store, FOLDER)]


def condemned(
    store: Store,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Set[str]:
    """List the folders of shards that no one may rely on; waits while a sweep decides on some.

    The wait is short: a sweep decides within seconds, and one whose process is gone, or is not
    heard of for two minutes, is not waited for: all that it named counts as condemned.
    """
    done = _DONE.setdefault(store, {})
    while True:
        sweeps = [
            done[path] if path in done else read_record(store, path, Sweep)
            for path in numbered(store, FOLDER)
        ]
        ended = (sweep for sweep in sweeps if sweep.phase in ("done", "withdrawn"))
        done.update({numbered_path(FOLDER, sweep.number): sweep for sweep in ended})
        undecided = [sweep for sweep in sweeps if sweep.phase == "condemning"]
        if not any(sweep.is_at_work(clock()) for sweep in undecided):
            return {
                prefix
                for sweep in sweeps
                if sweep.phase != "withdrawn"
                for prefix in sweep.condemned
            }
        sleep(POLL_S)


def begin_sweep(store: Store, clock: Callable[[], float] = time.time) -> Sweep:
    """Take the next number.

    Raises:
        TryAgain: another sweep is at work; its process and start are named.
    """
    while True:
        sweeps = read_sweeps(store)
        for sweep in sweeps:
            if sweep.is_at_work(clock()):
                raise TryAgain(
                    f"`hvkf gc` of {sweep.owner} is deleting in {store.url} since "
                    f"{written(sweep.started_s)}: wait for its end. If its process is gone, its "
                    f"lease ends at {written(sweep.lease_until_s)}."
                )
        number = sweeps[-1].number + 1 if sweeps else 1
        begun = Sweep(
            number=number,
            **this_holder(),
            started_s=clock(),
            lease_until_s=clock() + LEASE_S,
            phase="looking",
        )
        path = numbered_path(FOLDER, number)
        try:
            store.put_new(path, begun.to_json())
        except AlreadyExists:
            continue
        note_completed(store, path)
        return begun


def change_sweep(
    store: Store,
    sweep: Sweep,
    phase: Phase,
    prefixes: Set[str],
    clock: Callable[[], float] = time.time,
) -> Sweep:
    """Say how far a sweep is; only the sweep itself does, and its lease begins anew."""
    changed = sweep.model_copy(
        update={
            "phase": phase,
            "condemned": tuple(sorted(prefixes)),
            "lease_until_s": clock() + LEASE_S,
        }
    )
    store.put(numbered_path(FOLDER, sweep.number), changed.to_json())
    return changed


def written(seconds: float) -> str:
    """Write a time for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
