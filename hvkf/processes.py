"""Processes that end with the process that started them, and modules that they lack."""

import ctypes
import os
import signal
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import psutil

from hvkf.errors import MissingModule

PARENT_VARIABLE = "HVKF_PARENT"
# Of all processes below the one that set it, however they were started and whoever ended.
ORIGIN_VARIABLE = "HVKF_ORIGIN"
PROXY_SPARED = ("localhost", "127.0.0.1", "::1")
PR_SET_PDEATHSIG = 1
KILLED_WITHIN_S = 10.0


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


def spare_loopback_from_proxies() -> None:
    """Let this process and its children reach this machine's own servers without any proxy.

    A proxy that the environment names for the world outside knows nothing of 127.0.0.1.
    """
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    spared = [name.strip() for name in given.split(",") if name.strip()]
    missing = [name for name in PROXY_SPARED if name not in spared]
    if "*" not in spared:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*spared, *missing])


def mark_descendants() -> str:
    """Mark all processes that this one starts from now on, and those that they start."""
    os.environ[ORIGIN_VARIABLE] = mark = uuid.uuid4().hex
    return mark


def end_marked(mark: str, grace_s: float, spared: Collection[int] = ()) -> None:
    """End all processes with a mark, also those whose parents have ended.

    Args:
        mark: What `mark_descendants` returned.
        grace_s: How long they may save before they are killed.
        spared: Numbers of processes that go on.
    """
    while found := _marked(mark, spared):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(found, grace_s)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, KILLED_WITHIN_S)


def _marked(mark: str, spared: Collection[int]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_other = process.pid not in (*spared, os.getpid())
            if is_other and process.environ().get(ORIGIN_VARIABLE) == mark:
                # What has ended and nobody has asked for yet has no environment.
                found.append(process)
    return found
