"""The rule of every fuzz test: the project's own errors only, in bounds of time and memory.

`HVKF_FUZZ` multiplies the number of examples: 1 in `make test`, more in CI and in `make fuzz`.
Examples follow from the test alone, so that a red run can be repeated; `make fuzz` draws new ones.
"""

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from hvkf.errors import HvkfError

MAX_SECONDS = 5
MAX_MEMORY_MB = 500
MAX_MESSAGE = 600
SCALE = int(os.environ.get("HVKF_FUZZ", "1"))
IS_RANDOM = "HVKF_FUZZ_RANDOM" in os.environ

Test = Callable[..., Any]


def fuzzed(num_examples: int) -> Callable[[Test], Test]:
    """Run a hypothesis test on so many examples in `make test`, and on a multiple in CI."""
    return settings(
        max_examples=num_examples * SCALE,
        deadline=None,  # `in_bounds` holds the limit, and says what hung
        derandomize=not IS_RANDOM,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def in_bounds(max_message: int = MAX_MESSAGE) -> Iterator[None]:
    """Let a parser read something hostile.

    An error of the project's is an answer, when it is short enough to read; any other exception
    is not, and neither is an answer that takes more than 5 s or 500 MB.
    """
    gc.collect(0)
    _reset_peak()
    before_mb = _peak_mb()
    with _time_limit():
        try:
            yield
        except HvkfError as error:
            message = str(error)
            assert message, "an error without a sentence"
            assert len(message) <= max_message, f"{len(message)} characters: {message[:300]}..."
    used_mb = _peak_mb() - before_mb
    assert used_mb <= MAX_MEMORY_MB, f"{used_mb:.0f} MB for one input"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def too_long(signum: int, frame: object) -> None:
        raise TimeoutError(f"no answer within {MAX_SECONDS} s")

    # Of the process's own time, for other tests run beside this one. What waits without computing,
    # as for a FIFO, ends with the test's own timeout.
    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
