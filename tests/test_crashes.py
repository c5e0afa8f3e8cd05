"""Crashes: what a process brought on itself, told apart from what was done to it."""

import signal

import pytest

from hvkf.crashes import OUT_OF_MEMORY, crash_of, num_oom_kills


@pytest.mark.parametrize(
    ("code", "memory", "how"),
    [
        (0, False, None),
        (1, False, None),
        (65, True, None),
        (-signal.SIGKILL, False, None),
        (-signal.SIGKILL, True, OUT_OF_MEMORY),
        (-signal.SIGTERM, True, None),
        (-signal.SIGINT, False, None),
        (-signal.SIGSEGV, False, "SIGSEGV"),
        (-signal.SIGABRT, True, "SIGABRT"),
        (-signal.SIGBUS, False, "SIGBUS"),
    ],
)
def test_a_signal_of_ones_own_is_a_crash_and_a_kill_is_none(
    code: int, memory: bool, how: str | None
) -> None:
    assert crash_of(code, ran_out_of_memory=memory) == how


def test_the_kernels_count_of_memory_kills_is_read() -> None:
    assert num_oom_kills() >= 0
