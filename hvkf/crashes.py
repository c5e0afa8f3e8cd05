"""How worker processes crashed, noted by whoever started them and lived on.

A dead worker says nothing, and its claims look the same whether a row made it crash or somebody
killed it. Its parent knows: it sees the signal, and whether the machine ran out of memory. Only
what a process brings on itself is noted; a kill, a lost node or a shutdown is nobody's crash.
"""

import os
import signal
import uuid
from pathlib import Path

from hvkf.records import FORMAT_VERSION, Record
from hvkf.storage import Store
from hvkf.stored import read_record

CRASHES = "claims/crashes"
WORKER_VARIABLE = "HVKF_WORKER"
OWN_SIGNALS = {
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP),
    signal.SIGSYS,
}
OUT_OF_MEMORY = "out of memory"
VMSTAT = Path("/proc/vmstat")


class CrashNote(Record):
    """A worker that crashed, and how: a signal's name, or that memory ran out."""

    format_version: int = FORMAT_VERSION
    worker: str
    how: str


def new_worker_name(job: str) -> str:
    """Name a worker that a job starts, as no other is named."""
    return f"{job}-{uuid.uuid4().hex[:12]}"


def own_name() -> str:
    """Return the name that this worker was started with; empty where nobody watches it."""
    return os.environ.get(WORKER_VARIABLE, "")


def num_oom_kills() -> int:
    """Count the processes that this machine's kernel killed for want of memory since it started."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def crash_of(exit_code: int, *, ran_out_of_memory: bool) -> str | None:
    """Say how a process crashed that ended with `exit_code`; None where it did not by itself.

    Args:
        exit_code: Minus the signal, or what a process ended with.
        ran_out_of_memory: Whether its machine or container ran out of memory while it ran.
    """
    if exit_code == -signal.SIGKILL:
        return OUT_OF_MEMORY if ran_out_of_memory else None
    if -exit_code in OWN_SIGNALS:
        return signal.Signals(-exit_code).name
    return None


def note_crash(store: Store, worker: str, how: str) -> None:
    """Remember that a worker crashed."""
    store.put(_path(worker), CrashNote(worker=worker, how=how).to_json())


def find_crash(store: Store, worker: str) -> str | None:
    """Return how a worker crashed; None where nobody noted that it did."""
    if not worker:
        return None
    try:
        return read_record(store, _path(worker), CrashNote).how
    except FileNotFoundError:
        return None


def _path(worker: str) -> str:
    return f"{CRASHES}/{worker}.json"
