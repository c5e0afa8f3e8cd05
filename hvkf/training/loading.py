"""Processes that load batches: none may end, or live without delivering, unheard."""

import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hvkf.errors import BadInput, TryAgain
from hvkf.processes import follow_parent
from hvkf.settings.data import DataLoaderConfig

SHARED_MEMORY = Path("/dev/shm")
MIB = 1 << 20
# With less than this it is the likely reason: containers have 64 MiB if nobody asks for more.
LOW_SHARED_BYTES = 1 << 30
# How torch's DataLoader begins what it says of its processes, all of it as RuntimeError.
LOADER_WORDS = ("DataLoader worker", "Pin memory thread")


def begin_loader_process() -> None:
    """Let this loader process end when a batch is not handed over, when told, with its parent.

    Python's queue prints such an error from a thread and drops the batch: the process would live,
    and whoever waits for the batch would wait for ever.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the trainer's own only takes a note
    follow_parent()

    def end(error: BaseException, batch: object) -> None:
        print(f"A batch could not be handed over: {error}", file=sys.stderr, flush=True)
        os._exit(TryAgain.exit_code)

    # The hook that Python's own executors override.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


@contextmanager
def loader_errors_told(settings: DataLoaderConfig) -> Iterator[None]:
    """Say in a sentence what torch says of loader processes that ended or delivered nothing.

    Raises:
        BadInput: shared memory is small, and the likely reason.
        TryAgain: they ended or hung for another reason.
    """
    try:
        yield
    except (RuntimeError, TimeoutError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(LOADER_WORDS):
            raise
        _end_loader_processes()
        said = str(error).partition(". ")[0]
        if SHARED_MEMORY.exists():
            size = shutil.disk_usage(SHARED_MEMORY).total
            if size < LOW_SHARED_BYTES:
                raise BadInput(
                    f"{SHARED_MEMORY} has {size / MIB:.1f} MiB, too little for "
                    f"data.dataloader_kwargs.num_workers: {settings.num_workers} ({said}): set it "
                    "to 0, or enlarge it (docker run --shm-size, in Kubernetes an emptyDir with "
                    "medium: Memory)."
                ) from error
        raise TryAgain(
            f"A process of data.dataloader_kwargs.num_workers: {settings.num_workers} delivered no "
            f"batch ({said}); data.dataloader_kwargs.timeout_s says how long one is waited for."
        ) from error


def _end_loader_processes() -> None:
    """End what hangs and would live on; a training process has no other children."""
    if threading.current_thread() is threading.main_thread():
        # torch raises an error of its own there for each of them that ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.terminate()
