"""Many workers on many rows: deaths, stragglers, silences, duplicated starts, bad rows.

The rows, claims, records and the order of work are the product's own code; only the store is in
memory and the clock made up.
"""

import heapq
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hvkf.crashes import note_crash
from hvkf.errors import AlreadyExists
from hvkf.manifest import ManifestRow
from hvkf.stages.render_claims import Claims, Owner
from hvkf.stages.render_records import LEDGER, RenderRecord, RenderTask, record_path
from hvkf.stages.render_work import Render, Wait, put_record, work_off
from hvkf.storage import ObjectStat
from hvkf.user_files import check_size

LIFE_S = 120.0
MAX_TRIES = 3
RESTART_S = 30.0
FIRST_S = 1_000_000.0


class World(NamedTuple):
    """What happens to whom; shares are chances of a part's start, or of a row.

    A straggler works `slowness` times slower. A frozen worker falls silent for `frozen_s` in the
    midst of a row and then goes on, as one does whose machine was suspended. A bad row raises an
    error, a crasher crashes its worker and whoever started that one notes it, a killer ends its
    worker and nobody knows why.
    """

    num_workers: int = 1000
    num_rows: int = 100_000
    rows_per_part: int = 20
    row_s: float = 60.0
    deaths: float = 0.05
    stragglers: float = 0.05
    slowness: float = 5.0
    frozen: float = 0.005
    frozen_s: float = 600.0
    duplicates: float = 0.02
    bad_rows: float = 0.001
    crashers: float = 0.0
    killers: float = 0.0
    seed: int = 0


class MemoryStore:
    """A workspace in memory, with the promises of a store; folders are indexed for listing."""

    url = "memory"

    def __init__(self) -> None:
        self._folders: defaultdict[str, dict[str, bytes]] = defaultdict(dict)

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        folder, _, name = path.rpartition("/")
        if name not in self._folders[folder]:
            raise FileNotFoundError(path)
        check_size(len(self._folders[folder][name]), max_bytes, path)
        return self._folders[folder][name]

    def read_range(self, path: str, start: int, size: int) -> bytes:
        return self.read(path)[start : start + size]

    def exists(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self._folders[folder]

    def stat(self, path: str) -> ObjectStat:
        return ObjectStat(len(self.read(path)), "", 0.0)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the objects that lie directly in a folder: claims and records have no others."""
        yield from sorted(f"{prefix}/{name}" for name in self._folders[prefix])

    def list_root(self) -> Iterator[str]:
        yield from ()

    def list_partial(self) -> Iterator[str]:
        yield from ()

    def put(self, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        self._folders[folder][name] = data

    def put_new(self, path: str, data: bytes) -> None:
        if self.exists(path):
            raise AlreadyExists(path)
        self.put(path, data)

    def put_if(self, path: str, data: bytes, expected: bytes | None) -> None:
        if (self.read(path) if self.exists(path) else None) != expected:
            raise AlreadyExists(path)
        self.put(path, data)

    def upload(self, file: Path, path: str) -> None:
        self.put(path, file.read_bytes())

    def take(self, file: Path, path: str) -> None:
        self.upload(file, path)

    def download(self, path: str, file: Path) -> None:
        file.write_bytes(self.read(path))

    def delete(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        self._folders[folder].pop(name, None)

    def local_path(self, path: str) -> Path | None:
        return None


class _Worker:
    """A pod at work on one part."""

    def __init__(self, house: "House", part: int, claims: Claims, name: str) -> None:
        self.part, self.claims, self.name = part, claims, name
        attempt = f"start {house.num_starts} of part {part}"
        self.steps: Generator[Any, Any, None] = work_off(
            house.tasks(part), house.store, claims, attempt=attempt, clock=house.now
        )
        self.attempt = attempt
        self.is_alive = True
        self.task: RenderTask | None = None
        self.begun_s = self.silent_until_s = 0.0
        draw = house.random.random
        self.slowness = house.world.slowness if draw() < house.world.stragglers else 1.0
        length_s = house.world.rows_per_part * house.world.row_s * self.slowness
        self.dies_s = self.freezes_s = float("inf")
        if draw() < house.world.deaths:
            self.dies_s = house.now() + draw() * length_s
        if draw() < house.world.frozen:
            self.freezes_s = house.now() + draw() * length_s


class House:
    """All workers, their clock, and what comes of their work."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = random.Random(world.seed)
        self.store = MemoryStore()
        self.num_starts = 0
        self.useful_s = self.wasted_s = self.failing_s = 0.0
        self.seen: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self._now_s = FIRST_S
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._free = world.num_workers
        num_parts = -(-world.num_rows // world.rows_per_part)
        self._waiting = list(range(num_parts))[::-1]
        self._bad = self._some(world.bad_rows)
        self._crashers = self._some(world.crashers) - self._bad
        self._killers = self._some(world.killers) - self._bad - self._crashers

    def _some(self, share: float) -> set[int]:
        return {row for row in range(self.world.num_rows) if self.random.random() < share}

    def now(self) -> float:
        """The made-up time."""
        return self._now_s

    def tasks(self, part: int) -> list[RenderTask]:
        """Make a part's rows."""
        first = part * self.world.rows_per_part
        last = min(first + self.world.rows_per_part, self.world.num_rows)
        return [_task(number) for number in range(first, last)]

    def run(self) -> None:
        """Let everybody work until nobody has anything to do."""
        self._start_more()
        while self._queue:
            self._now_s, _, event = heapq.heappop(self._queue)
            event()

    def _at(self, when_s: float, event: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._queue, (when_s, self._num_events, event))

    def _start_more(self) -> None:
        while self._free > 0 and self._waiting:
            part = self._waiting.pop()
            self._start(part)
            if self.random.random() < self.world.duplicates:
                # Another pod begins the same part, as after a lost node that is not lost.
                self._at(self._now_s + self.random.random() * 300, partial(self._also, part))

    def _also(self, part: int) -> None:
        self.seen["duplicated starts"] += 1
        self._free -= 1
        self._begin(part)

    def _start(self, part: int) -> None:
        self._free -= 1
        self._begin(part)

    def _begin(self, part: int) -> None:
        self.num_starts += 1
        # Each worker is on a machine of its own: that it is gone is only seen by its silence.
        name = f"worker {self.num_starts}"
        owner = Owner(name, f"machine {self.num_starts}", 1, 0.0, name)
        claims = Claims(self.store, life_s=LIFE_S, max_tries=MAX_TRIES, owner=owner, clock=self.now)
        worker = _Worker(self, part, claims, name)
        if worker.slowness > 1:
            self.seen["stragglers"] += 1
        if worker.dies_s < float("inf"):
            self._at(worker.dies_s, lambda: self._die(worker))
        self._at(self._now_s + claims.renew_every_s, lambda: self._renew(worker))
        self._step(worker, None)

    def _die(self, worker: _Worker) -> None:
        if not worker.is_alive:
            return
        self.seen["deaths"] += 1
        worker.is_alive = False
        if worker.task is not None:
            self.wasted_s += self._now_s - worker.begun_s
        self._free += 1
        self._at(self._now_s + RESTART_S, lambda: self._again(worker.part))

    def _again(self, part: int) -> None:
        self._waiting.append(part)
        self._start_more()

    def _renew(self, worker: _Worker) -> None:
        if not worker.is_alive:
            return
        if self._now_s >= worker.silent_until_s:
            worker.claims.renew()
        self._at(self._now_s + worker.claims.renew_every_s, lambda: self._renew(worker))

    def _step(self, worker: _Worker, answer: tuple[str, ...] | None) -> None:
        if not worker.is_alive:
            return
        try:
            step = next(worker.steps) if answer is None else worker.steps.send(answer)
        except StopIteration:
            worker.is_alive = False
            self._free += 1
            self._start_more()
            return
        if isinstance(step, Wait):
            self.seen["waits"] += 1
            self._at(self._now_s + step.seconds, lambda: self._step(worker, ()))
            return
        assert isinstance(step, Render)
        (worker.task,) = step.tasks
        worker.begun_s = self._now_s
        ends_s = self._now_s + self.world.row_s * worker.slowness * self.random.uniform(0.8, 1.2)
        if worker.freezes_s < ends_s:
            self.seen["frozen"] += 1
            worker.silent_until_s = self._now_s + self.world.frozen_s
            ends_s += self.world.frozen_s
            worker.freezes_s = float("inf")
        if worker.task.row.row in self._crashers | self._killers:
            self._at(ends_s, lambda: self._crash(worker))
        else:
            self._at(ends_s, lambda: self._end(worker))

    def _crash(self, worker: _Worker) -> None:
        """End a worker by the row that it renders."""
        if not worker.is_alive:
            return
        assert worker.task is not None
        self.seen["crashes"] += 1
        if worker.task.row.row in self._crashers:
            note_crash(self.store, worker.name, "SIGSEGV")
        self.failing_s += self._now_s - worker.begun_s
        worker.task = None
        self._die(worker)

    def _end(self, worker: _Worker) -> None:
        """End a row as the worker does: record it if it is still held."""
        if not worker.is_alive:
            return
        task, spent_s = worker.task, self._now_s - worker.begun_s
        assert task is not None
        worker.task = None
        if task.row.row in self._bad:
            self.failing_s += spent_s
            worker.claims.end(task.identity, "failed", "out of memory")
        elif worker.silent_until_s and task.identity in worker.claims.renew():
            self.wasted_s += spent_s
        else:
            record = RenderRecord(identity=task.identity, attempt=worker.attempt)
            is_first = put_record(self.store, record)
            self.records[task.identity] += is_first
            self.useful_s += spent_s if is_first else 0.0
            self.wasted_s += 0.0 if is_first else spent_s
            worker.claims.end(task.identity, "done")
        self._step(worker, ())

    def figures(self) -> dict[str, Any]:
        """Count what became of the rows, from the records in the store."""
        set_aside, lost = set(), []
        for number in range(self.world.num_rows):
            path = record_path(_identity(number))
            if not self.store.exists(path):
                lost.append(number)
            elif (found := RenderRecord.from_json(self.store.read(path))).failure is not None:
                said = ("out of memory", "its worker crashed (SIGSEGV)", "without a word")
                kind = [number in of for of in (self._bad, self._crashers, self._killers)]
                assert any(kind), f"a good row was quarantined: {found.failure.message}"
                assert said[kind.index(True)] in found.failure.message
                set_aside.add(number)
        return {
            "rows": self.world.num_rows,
            "recorded": len(list(self.store.list(LEDGER))),
            "rendered_once": sum(count == 1 for count in self.records.values()),
            "rendered_twice": sum(count > 1 for count in self.records.values()),
            "set_aside": len(set_aside),
            "bad_rows": len(self._bad),
            "crashers": len(self._crashers),
            "killers": len(self._killers),
            "bad_rows_not_set_aside": len((self._bad | self._crashers | self._killers) - set_aside),
            "good_rows_set_aside": len(set_aside - self._bad - self._crashers - self._killers),
            "lost": len(lost),
            "starts": self.num_starts,
            **{name.replace(" ", "_"): count for name, count in sorted(self.seen.items())},
            "useful_worker_hours": round(self.useful_s / 3600, 2),
            "wasted_worker_hours": round(self.wasted_s / 3600, 2),
            "failing_worker_hours": round(self.failing_s / 3600, 2),
            "wasted_share": round(self.wasted_s / max(1.0, self.useful_s), 5),
        }


def _identity(number: int) -> str:
    return f"{number:032x}"


def _task(number: int) -> RenderTask:
    row = ManifestRow.model_construct(
        row=number,
        id=str(number),
        first_frame="a.png",
        last_frame="b.png",
        keyframes=(),
        prompt="",
        width=64,
        height=64,
        num_frames=33,
        steps=4,
        guidance=6.0,
        true_cfg_scale=1.0,
        negative_prompt="",
        seed=number,
        lora="",
        tags="",
    )
    return RenderTask.model_construct(
        row=row, keyframes=(), lora="none", identity=_identity(number), notes=""
    )


def simulate(world: World) -> dict[str, Any]:
    """Let a world's workers do its rows, and return the figures."""
    house = House(world)
    begun_s = time.monotonic()
    house.run()
    return {**house.figures(), "simulated_in_s": round(time.monotonic() - begun_s, 1)}
