"""Work done ahead in a thread, so that reading overlaps with what is made of it."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

ItemT = TypeVar("ItemT")
POLL_S = 0.1
JOIN_S = 10.0


class _Fault:
    """What ended the thread's iteration, on its way to whoever reads it."""

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception


def ahead(
    source: Iterable[ItemT], depth: int = 2, timeout_s: float | None = None
) -> Generator[ItemT, None, None]:
    """Yield what `source` yields, in order, fetching up to `depth` items ahead in a thread.

    Memory holds `depth` + 2 items at most. Close the generator (or read it to its end) to end the
    thread; a fault of the source is raised where its item would have come.

    Raises:
        TimeoutError: no item came for `timeout_s`; the thread is left to itself.
    """
    items: queue.Queue[object] = queue.Queue(maxsize=depth)
    end, is_closed = object(), threading.Event()

    def put(item: object) -> bool:
        while not is_closed.is_set():
            try:
                items.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def fetch() -> None:
        try:
            for item in source:
                if not put(item):
                    return
            put(end)
        except BaseException as fault:  # it is raised by the reader
            put(_Fault(fault))

    thread = threading.Thread(target=fetch, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := _next(items, timeout_s)) is not end:
            if isinstance(item, _Fault):
                raise item.exception
            yield item  # type: ignore[misc]
    finally:
        is_closed.set()
        # A source that hangs is not waited for where somebody has said how long it may.
        thread.join(None if timeout_s is None else min(timeout_s, JOIN_S))


def _next(items: "queue.Queue[object]", timeout_s: float | None) -> object:
    try:
        return items.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"nothing came for {timeout_s:.0f} s") from None
