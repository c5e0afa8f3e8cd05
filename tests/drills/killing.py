"""Killing a stage's worker at a chosen moment: before, amid or after any of its writes.

The moments are counted, not timed: a store that counts its writes sends SIGKILL to its own process
at the one it was told. The worker is a forked child, so that torch is imported once for all drills.
"""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hvkf.storage import TEMPORARY_PREFIX, FolderStore

PHASES = ("before", "amid", "after")
CHILD_TIMEOUT_S = 240
SIGNED = ("/ledger/", "/logs/", "/pairs/")
"""Records in these folders name who wrote them, and when."""


class Moment(NamedTuple):
    """When to die: at the `write`-th write (from 0), in which phase of it."""

    write: int
    phase: str


class DyingStore(FolderStore):
    """A real folder workspace whose process is killed at one of its writes."""

    def __init__(self, root: Path, moment: Moment | None) -> None:
        super().__init__(root)
        self._moment = moment
        self.num_writes = 0

    def _die_if(self, phase: str) -> None:
        if self._moment == Moment(self.num_writes, phase):
            os.kill(os.getpid(), signal.SIGKILL)

    def _leave_half(self, path: str, data: bytes) -> None:
        """Do what a killed writer does: leave a temporary file with half of the bytes."""
        if self._moment == Moment(self.num_writes, "amid"):
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.parent / f"{TEMPORARY_PREFIX}killed-{self.num_writes}"
            half.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, path: str, data: bytes, write: Callable[[], None]) -> None:
        self._die_if("before")
        self._leave_half(path, data)
        write()
        self._die_if("after")
        self.num_writes += 1

    def put(self, path: str, data: bytes) -> None:
        self._counted(path, data, lambda: FolderStore.put(self, path, data))

    def put_new(self, path: str, data: bytes) -> None:
        self._counted(path, data, lambda: FolderStore.put_new(self, path, data))

    def upload(self, file: Path, path: str) -> None:
        self._counted(path, file.read_bytes(), lambda: FolderStore.upload(self, file, path))

    def take(self, file: Path, path: str) -> None:
        self._counted(path, file.read_bytes(), lambda: FolderStore.take(self, file, path))


def run_and_count(root: Path, work: Callable[[DyingStore], None]) -> int:
    """Run undisturbed in a child, and return how many writes that took."""
    counts = root.parent / f"{root.name}-writes"

    def counted(store: DyingStore) -> None:
        work(store)
        counts.write_text(str(store.num_writes))

    assert _in_child(root, None, counted) == 0
    return int(counts.read_text())


def run_and_kill(root: Path, moment: Moment, work: Callable[[DyingStore], None]) -> None:
    """Run in a child that must be killed at the moment."""
    assert _in_child(root, moment, work) == -signal.SIGKILL


def _in_child(root: Path, moment: Moment | None, work: Callable[[DyingStore], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(CHILD_TIMEOUT_S)
            work(DyingStore(root, moment))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Not sys.exit: the child must not run the test session's cleanup.
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stored_bytes(root: Path, kinds: tuple[str, ...]) -> dict[str, str]:
    """Hash every object of these kinds anew, but for records that name who wrote them."""
    from hvkf.storage import file_sha256

    store = FolderStore(root)
    paths = (path for kind in kinds for path in store.list(kind))
    return {
        path: file_sha256(root / path)
        for path in paths
        if not any(folder in path for folder in SIGNED)
    }
