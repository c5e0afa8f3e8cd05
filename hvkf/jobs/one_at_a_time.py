"""One command at a time does the same work on a machine: another one waits for it, and says so."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from hvkf.jobs.turns import IN_TURNS
from hvkf.records import Plan, digest
from hvkf.scratch import scratch_root
from hvkf.storage import LOCK_NAME, FolderStore, Store

FOLDER = "jobs"
POLL_S = 0.3
# Who has only just begun gets this long to write its name, before it is called "another command".
NAME_WITHIN_S = 3.0
# A file system without locks, as some network file systems are.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def alone(plan: Plan, store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other command does a plan's work, and keep others from it meanwhile.

    The kernel lets go of the lock when its holder ends, however that ends. Rendering needs none:
    its workers claim rows, and share a manifest.

    Args:
        plan: Whose work it is; its digest names the work.
        store: The workspace. In a folder, the lock lies there, for all machines that share it. For
            one in S3 it lies on this machine, and holds here only.
        say: Is told once whom this waits for, or that there are no locks.
    """
    if plan.stage in IN_TURNS:
        yield
        return
    file = _lock_file(plan, store)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        _acquire(lock, plan, say)
        lock.seek(0)
        lock.truncate()
        lock.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        lock.flush()
        yield


def _lock_file(plan: Plan, store: Store) -> Path:
    if isinstance(store, FolderStore):
        return store.root / FOLDER / f"{plan.stage}-{plan.digest[:12]}" / LOCK_NAME
    name = digest([store.url, plan.stage, plan.digest])
    return scratch_root() / f"hvkf-jobs-{os.getuid()}" / f"{name}.lock"


def _acquire(lock: IO[str], plan: Plan, say: Callable[[str], None]) -> None:
    has_said = False
    begun_s = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(lock)
            if not has_said and (holder or time.monotonic() - begun_s > NAME_WITHIN_S):
                who = holder or "another command"
                say(f"{plan.stage}: {who} does this work already; waiting for it")
                has_said = True
            time.sleep(POLL_S)  # not in the kernel: a stop is heard meanwhile
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(
                f"{plan.stage}: the file system of {Path(lock.name).parent} has no locks "
                f"({error.strerror}): see to it that no other command does this work meanwhile"
            )
            return
        else:
            return


def _holder(lock: IO[str]) -> str | None:
    lock.seek(0)
    try:
        held = json.loads(lock.read())
        return f"process {int(held['process'])} on {held['host']}"
    except (ValueError, KeyError, TypeError):  # it has only just begun
        return None
