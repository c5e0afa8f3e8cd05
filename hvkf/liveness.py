"""Whether a process of this machine still runs, told apart from a later one of the same number."""

import os
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypedDict

import psutil

TOLERANCE_S = 1.0


class ProcessMark(NamedTuple):
    """A process's number, and when it was started: seconds after the machine was.

    Not the time of day: the clock may be set while the process runs.
    """

    number: int
    started_s: float


@cache
def machine_name() -> str:
    """Name this machine's process numbers: containers have their own, under any host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{uuid.getnode()}"
    return f"{socket.gethostname()}/{boot}/{namespace}"


def this_process() -> ProcessMark:
    """Describe this process."""
    return ProcessMark(os.getpid(), _started_s(os.getpid()))


class Holder(TypedDict):
    """The fields of a record that say who put it; `process_started_s` as in `ProcessMark`."""

    owner: str
    machine: str
    process: int
    process_started_s: float


def this_holder() -> Holder:
    """Describe this process for a record that it puts."""
    process = this_process()
    return Holder(
        owner=f"{socket.gethostname()}:{process.number}",
        machine=machine_name(),
        process=process.number,
        process_started_s=process.started_s,
    )


def is_running(mark: ProcessMark) -> bool:
    """Say whether a process of this machine has not ended."""
    try:
        return abs(_started_s(mark.number) - mark.started_s) < TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def _started_s(number: int) -> float:
    # Both are by the clock of now, so that setting it moves neither against the other.
    return psutil.Process(number).create_time() - psutil.boot_time()
