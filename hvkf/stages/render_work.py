"""In which order a worker does its rows beside others, without rendering anything itself.

The order is a generator: it yields what to do next, and whoever drives it renders or waits. The
worker drives it with models, the tests' simulation of a thousand workers with a made-up clock.
"""

import time
from collections.abc import Callable, Collection, Generator, Sequence
from typing import NamedTuple

from hvkf.errors import AlreadyExists
from hvkf.records import Failure
from hvkf.stages.render_claims import Busy, Claims, SetAside
from hvkf.stages.render_records import RenderRecord, RenderTask, record_path, row_failure
from hvkf.storage import Store

SHORTEST_WAIT_S = 0.05
WAITS_PER_LIFE = 8
SET_ASIDE = "set-aside"
"""The code of a row that failed at each of its tries."""


class Render(NamedTuple):
    """These rows are claimed: render them, put their records, end their claims."""

    tasks: tuple[RenderTask, ...]


class Wait(NamedTuple):
    """Other workers have all remaining rows: look again after so many seconds."""

    seconds: float


def work_off(
    tasks: Sequence[RenderTask],
    store: Store,
    claims: Claims,
    *,
    attempt: str,
    batch_size: int = 1,
    clock: Callable[[], float] = time.time,
    gives_way: Callable[[], bool] = lambda: False,
) -> Generator[Render | Wait, Collection[str], None]:
    """Yield what to do until every row has a record; rows that others have come last.

    The driver sends back the identities of rows that it gives up without a record. After a row this
    ends early when `gives_way` says so: somebody more urgent waits, and the rest comes later.
    """
    remaining = list(tasks)
    while remaining:
        later: list[RenderTask] = []
        batch: list[RenderTask] = []
        soonest_s: float | None = None
        worked = False
        for task in (*remaining, None):
            if batch and (task is None or not _joins(batch, task, claims, batch_size)):
                given_up = yield Render(tuple(batch))
                later += [done for done in batch if done.identity not in given_up]
                batch, worked = [], True
                if gives_way():
                    return
            if task is None:
                break
            answer = _take(task, store, claims, attempt, together=batch_size > 1)
            if isinstance(answer, Busy):
                later.append(task)
                soonest_s = min(answer.until_s, soonest_s or answer.until_s)
            elif answer and batch and claims.must_be_alone(task.identity):
                claims.end(task.identity, "released")  # its turn comes when these are done
                later.append(task)
            elif answer:
                batch.append(task)
        remaining = later
        if remaining and not worked:
            assert soonest_s is not None
            longest_s = claims.renew_every_s * 3 / WAITS_PER_LIFE
            yield Wait(max(SHORTEST_WAIT_S, min(soonest_s - clock(), longest_s)))


def _joins(batch: Sequence[RenderTask], task: RenderTask, claims: Claims, batch_size: int) -> bool:
    """Whether a row may be sampled in one batch with others that were taken."""
    if len(batch) == batch_size or claims.must_be_alone(batch[0].identity):
        return False
    return _go_together(batch[0], task)


def _take(
    task: RenderTask, store: Store, claims: Claims, attempt: str, *, together: bool
) -> Busy | bool:
    """Take a row: True when it is this worker's now, False when there is nothing left to do.

    A row that failed too often gets its record here.
    """
    if store.exists(record_path(task.identity)):
        return False
    answer = claims.take(task.identity, together=together)
    if isinstance(answer, Busy):
        return answer
    if isinstance(answer, SetAside):
        failure = row_failure(task.row, SET_ASIDE, f"failed too often; last: {answer.message}")
        put_record(store, failure_record(task, failure, attempt))
        return False
    if store.exists(record_path(task.identity)):
        claims.end(task.identity, "released")  # finished between the look and the claim
        return False
    return True


def _go_together(one: RenderTask, other: RenderTask) -> bool:
    """Whether two rows can be sampled in one batch."""

    def key(task: RenderTask) -> tuple[object, ...]:
        row = task.row
        return task.lora, row.shape, row.steps, row.guidance, row.true_cfg_scale

    return key(one) == key(other)


def put_record(store: Store, record: RenderRecord) -> bool:
    """Record a row; False where another worker did before."""
    try:
        store.put_new(record_path(record.identity), record.to_json())
    except AlreadyExists:
        return False
    return True


def failure_record(task: RenderTask, failure: Failure, attempt: str) -> RenderRecord:
    """Record that a row cannot be rendered."""
    return RenderRecord(identity=task.identity, failure=failure, attempt=attempt)
