"""Who works in a workspace now, and which plans are not committed yet: what `hvkf gc` leaves alone.

`uses/work/<id>.json` is a lease of a process: a command, a worker, an import, a promotion. It is
renewed while the process works, and gone when it ends; that of a killed process ends by itself.
`uses/plans/<stage>-<digest>.json` says that a plan was stored and its result is not committed.
"""

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from hvkf.errors import HvkfError
from hvkf.liveness import ProcessMark, is_running, machine_name, this_holder
from hvkf.records import FORMAT_VERSION, Plan, Record
from hvkf.storage import Store
from hvkf.stored import read_record
from hvkf.sweeps import condemned, written

WORK = "uses/work"
PLANS = "uses/plans"
LIFE_S = 300.0
PLAN_LIFE_S = 7 * 24 * 3600.0
RENEWALS_PER_LIFE = 5
WORK_NAME = re.compile(r"[0-9a-f]{32}\.json")
PLAN_NAME = re.compile(r"[a-z]+-[0-9a-f]+\.json")

logger = logging.getLogger(__name__)


class WorkUse(Record):
    """A process that works in the workspace; `plan` is the digest of what a worker works off.

    Times are in seconds since 1970, but for the start of the process: since that of the machine.
    """

    format_version: int = FORMAT_VERSION
    what: str
    plan: str = ""
    owner: str
    machine: str
    process: int
    process_started_s: float
    since_s: float
    until_s: float

    def is_live(self, now_s: float) -> bool:
        """Whether its process is still heard of, and on this machine: whether it runs."""
        if now_s >= self.until_s:
            return False
        if self.machine != machine_name():
            return True
        return is_running(ProcessMark(self.process, self.process_started_s))

    def sentence(self) -> str:
        """Say who it is, since when, and how it ends."""
        return (
            f"{self.what} on {self.owner} is at work since {written(self.since_s)}: wait for it, "
            "or stop it (Ctrl-C or SIGTERM; it goes on later). If it was killed, it counts until "
            f"{written(self.until_s)}."
        )


class PlanUse(Record):
    """A plan that was stored and is not committed; `until_s` is in seconds since 1970."""

    format_version: int = FORMAT_VERSION
    stage: str
    digest: str
    since_s: float
    until_s: float


@contextmanager
def at_work(
    store: Store, what: str, plan: str = "", clock: Callable[[], float] = time.time
) -> Iterator[None]:
    """Tell `hvkf gc` that this process works in the workspace, until the block ends.

    Waits until a deletion that is just deciding has decided: see `hvkf.garbage`.

    Args:
        store: The workspace.
        what: The command, for people.
        plan: The digest of the plan that a worker works off.
        clock: Seconds since 1970.
    """
    use = WorkUse(
        what=what,
        plan=plan,
        **this_holder(),
        since_s=clock(),
        until_s=clock() + LIFE_S,
    )
    path = f"{WORK}/{uuid.uuid4().hex}.json"
    ended = Event()

    def renew() -> None:
        while not ended.wait(LIFE_S / RENEWALS_PER_LIFE):
            try:
                renewed = use.model_copy(update={"until_s": clock() + LIFE_S})
                store.put(path, renewed.to_json())
            except (HvkfError, OSError) as error:
                logger.warning("The lease %s could not be renewed (%s); trying again.", path, error)

    thread = Thread(target=renew, name="use", daemon=True)
    store.put(path, use.to_json())
    try:
        condemned(store)
        thread.start()
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
        try:
            store.delete(path)
        except (HvkfError, OSError) as error:  # the lease ends by itself
            logger.warning("The lease %s could not be removed: %s", path, error)


def live_work(store: Store, now_s: float) -> list[WorkUse]:
    """List the processes at work; other files in the folder are none of ours."""
    found = []
    for path in _named(store, WORK, WORK_NAME):
        try:
            use = read_record(store, path, WorkUse)
        except FileNotFoundError:  # it ended meanwhile
            continue
        if use.is_live(now_s):
            found.append(use)
    return found


def drop_ended_work(store: Store, now_s: float) -> None:
    """Remove what killed processes left; their leases have ended."""
    for path in _named(store, WORK, WORK_NAME):
        try:
            use = read_record(store, path, WorkUse)
        except FileNotFoundError:
            continue
        if not use.is_live(now_s):
            store.delete(path)


def open_plan(store: Store, plan: Plan, clock: Callable[[], float] = time.time) -> None:
    """Say that a plan was stored; its finished parts are no garbage until it is committed."""
    use = PlanUse(
        stage=plan.stage, digest=plan.digest, since_s=clock(), until_s=clock() + PLAN_LIFE_S
    )
    store.put(_plan_path(plan), use.to_json())


def close_plan(store: Store, plan: Plan) -> None:
    """Say that a plan is committed."""
    store.delete(_plan_path(plan))


def open_plans(store: Store, now_s: float) -> list[PlanUse]:
    """List the plans that were stored within the last week and are not committed."""
    found = []
    for path in _named(store, PLANS, PLAN_NAME):
        try:
            use = read_record(store, path, PlanUse)
        except FileNotFoundError:
            continue
        if now_s < use.until_s:
            found.append(use)
    return found


def _named(store: Store, folder: str, names: re.Pattern[str]) -> list[str]:
    return [path for path in store.list(folder) if names.fullmatch(path.rpartition("/")[2])]


def _plan_path(plan: Plan) -> str:
    return f"{PLANS}/{plan.stage}-{plan.digest}.json"
