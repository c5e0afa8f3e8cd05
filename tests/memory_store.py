"""A workspace in memory, with all promises of a store, and actors whose requests are scheduled."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hvkf.errors import AlreadyExists
from hvkf.storage import FORMAT_FILE, ObjectStat, safe_path
from hvkf.user_files import check_size

TIMEOUT_S = 20.0


class MemoryStore:
    """Objects in a dictionary; each request is one atomic step."""

    url = "memory"

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = {} if objects is None else objects

    def step(self) -> None:
        """Come before a request."""

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        self.step()
        if path not in self.objects:
            raise FileNotFoundError(path)
        check_size(len(self.objects[path]), max_bytes, path)
        return self.objects[path]

    def read_range(self, path: str, start: int, size: int) -> bytes:
        return self.read(path)[start : start + size]

    def exists(self, path: str) -> bool:
        self.step()
        return path in self.objects

    def stat(self, path: str) -> ObjectStat:
        return ObjectStat(len(self.read(path)), "", 0.0)

    def list(self, prefix: str) -> Iterator[str]:
        self.step()
        safe_path(prefix)
        yield from sorted(path for path in self.objects if path.startswith(f"{prefix}/"))

    def list_root(self) -> Iterator[str]:
        self.step()
        yield from sorted(path for path in self.objects if "/" not in path and path != FORMAT_FILE)

    def list_partial(self) -> Iterator[str]:
        yield from ()

    def put(self, path: str, data: bytes) -> None:
        self.step()
        self.objects[path] = data

    def put_new(self, path: str, data: bytes) -> None:
        self.put_if(path, data, None)

    def put_if(self, path: str, data: bytes, expected: bytes | None) -> None:
        self.step()
        if self.objects.get(path) != expected:
            raise AlreadyExists(path)
        self.objects[path] = data

    def upload(self, file: Path, path: str) -> None:
        self.put(path, file.read_bytes())

    def take(self, file: Path, path: str) -> None:
        self.upload(file, path)

    def download(self, path: str, file: Path) -> None:
        file.write_bytes(self.read(path))

    def delete(self, path: str) -> None:
        self.step()
        self.objects.pop(path, None)

    def local_path(self, path: str) -> Path | None:
        return None


class _Gone(BaseException):
    """Ends an actor that is abandoned in the midst of its work, as kill -9 does."""


class Actor(MemoryStore):
    """A process with the shared workspace: it makes one request each time it is told to go on."""

    def __init__(self, objects: dict[str, bytes], work: Callable[["Actor"], object]) -> None:
        super().__init__(objects)
        self._may_go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._is_killed = False
        self.is_done = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        assert self._waits.acquire(timeout=TIMEOUT_S)

    def _run(self, work: Callable[["Actor"], object]) -> None:
        try:
            work(self)
        except _Gone:
            pass
        except BaseException as error:
            self.error = error
        self.is_done = True
        self._waits.release()

    def step(self) -> None:
        """Wait until the schedule comes to this actor."""
        self._waits.release()
        self._may_go.acquire()
        if self._is_killed:
            raise _Gone

    def go_on(self) -> None:
        """Make one request, and come to the next one or to the end."""
        self._may_go.release()
        assert self._waits.acquire(timeout=TIMEOUT_S), "the actor waits for something else"

    def kill(self) -> None:
        """End it where it stands."""
        self._is_killed = True
        while not self.is_done:
            self.go_on()


def run_schedule(
    actors: Sequence[Actor], schedule: Sequence[int], check: Callable[[], None]
) -> None:
    """Let actors make their requests in an order, then each its rest; check after every request.

    Args:
        actors: They wait at their first request.
        schedule: Whose turn it is; turns of an actor that is done are skipped.
        check: What must hold at every moment.
    """
    order = [*schedule, *(index for index, _ in enumerate(actors) for _ in range(1000))]
    for index in order:
        if not actors[index].is_done:
            actors[index].go_on()
            check()
    assert all(actor.is_done for actor in actors)
    for actor in actors:
        if actor.error is not None:
            raise actor.error
