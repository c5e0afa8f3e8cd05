"""Committing finished segments in a thread, while the next ones are made."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from hvkf import ledger
from hvkf.shards import SegmentWriter
from hvkf.storage import Store


class Committer:
    """Uploads finished segments while others are made; a fault is raised with the next."""

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Committer":
        return self

    def __exit__(self, *fault: object) -> None:
        try:
            self._wait()
        finally:
            self._thread.shutdown()

    def commit(
        self, writers: Sequence[SegmentWriter], then: Callable[[], object] | None = None
    ) -> None:
        """Commit segments in their order, then do `then`; their scratch files are dropped.

        Raises:
            HvkfError: the fault of the commit before this one.
        """
        try:
            self._wait()
        except BaseException:
            for writer in writers:
                writer.close()
            raise
        self._pending = self._thread.submit(self._commit, writers, then)

    def _commit(self, writers: Sequence[SegmentWriter], then: Callable[[], object] | None) -> None:
        try:
            for writer in writers:
                writer.commit(self._store, self._root, ledger.attempt_name())
            if then is not None:
                then()
        finally:
            for writer in writers:
                writer.close()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
