"""Whether a process of this machine still runs, told apart from a later one of the same number."""

import os
from typing import NamedTuple

import psutil

TOLERANCE_S = 1.0


class ProcessMark(NamedTuple):
    """A process's number, and when it was started: seconds after the machine was.

    Not the time of day: the clock may be set while the process runs.
    """

    number: int
    started_s: float


def this_process() -> ProcessMark:
    """Describe this process."""
    return ProcessMark(os.getpid(), _started_s(os.getpid()))


def is_running(mark: ProcessMark) -> bool:
    """Say whether a process of this machine has not ended."""
    try:
        return abs(_started_s(mark.number) - mark.started_s) < TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def _started_s(number: int) -> float:
    # Both are by the clock of now, so that setting it moves neither against the other.
    return psutil.Process(number).create_time() - psutil.boot_time()
