"""Processes that end with the process that started them."""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "HVKF_PARENT"
PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """End with the process that started this one, even when that is killed (on Linux).

    Only a process that hvkf started does: it finds its parent's number in `HVKF_PARENT`.
    """
    if PARENT_VARIABLE not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 and os.environ[PARENT_VARIABLE] != "1":
        sys.exit(1)  # the parent ended before the kernel was asked
