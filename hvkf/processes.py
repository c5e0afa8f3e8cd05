"""Processes that end with the process that started them, and modules that they lack."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hvkf.errors import MissingModule

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


@contextmanager
def missing_modules_told(work: str) -> Iterator[None]:
    """Turn a failed import into a sentence: it fails in the same way at every further start.

    Args:
        work: What is done, such as `hvkf ingest`.

    Raises:
        MissingModule: naming the module and where it is to be had.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingModule(
            f"{work} needs the Python module {error.name!r}, which is not installed in "
            f"{sys.prefix}: pip install 'hvkf[model]' there, or run it as jobs whose image is "
            "built from docker/gpu.Dockerfile."
        ) from error
    except ImportError as error:
        raise MissingModule(
            f"{work} cannot load the Python module {error.name or '?'!r} of {sys.prefix} "
            f"({error}): install again from the lock file, or use the images of docker/."
        ) from error
