"""Committing finished segments in a thread, while the next ones are made."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from hvkf import ledger
from hvkf.shards import SegmentWriter
from hvkf.storage import Store

PENDING_BYTES = 128 << 20
"""Segments that wait to be committed hold no more than this, or are one."""


class Committer:
    """Uploads finished segments, in their order, while others are made.

    A fault is raised by a later call, or where the committer is left.
    """

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._pending: deque[tuple[Future[None], int]] = deque()

    def __enter__(self) -> "Committer":
        return self

    def __exit__(self, *fault: object) -> None:
        try:
            self._wait_for_all_but(0)
        finally:
            self._thread.shutdown()

    def commit(self, writer: SegmentWriter, then: Callable[[], object] | None = None) -> None:
        """Commit a segment when those before it are, then do `then`; drop its scratch files.

        Returns at once, unless more than `PENDING_BYTES` wait.

        Raises:
            HvkfError: the fault of a commit before this one.
        """
        try:
            self._wait_for_all_but(PENDING_BYTES - writer.num_bytes)
        except BaseException:  # also a stop: no scratch files are left
            writer.close()
            raise
        done = self._thread.submit(self._commit, writer, then)
        self._pending.append((done, writer.num_bytes))

    def _commit(self, writer: SegmentWriter, then: Callable[[], object] | None) -> None:
        try:
            writer.commit(self._store, self._root, ledger.attempt_name())
            if then is not None:
                then()
        finally:
            writer.close()

    def _wait_for_all_but(self, num_bytes: int) -> None:
        """Wait until the segments that are not committed yet hold so little; raise their faults."""
        waiting = sum(size for _, size in self._pending)
        while self._pending and (waiting > num_bytes or self._pending[0][0].done()):
            done, size = self._pending.popleft()
            done.result()
            waiting -= size
