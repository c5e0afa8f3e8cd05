"""One night's retraining: at most one at a time, skipped where nothing is new, within a budget.

`nightly/<name>/000001.json` is a night's record. While the night runs, the record is also its lease
on the name: whoever begins one creates the next number, and of two at once one succeeds, whatever
server or machine they come from. Only the night itself writes its record after that.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from hvkf.catalog import newest_catalog
from hvkf.config import Config
from hvkf.errors import AlreadyExists, BadInput, HvkfError, WorkStopped
from hvkf.journal import note_completed
from hvkf.ledger_paths import numbered, numbered_path
from hvkf.loras import NONE
from hvkf.records import FORMAT_VERSION, Record, Summary, digest
from hvkf.settings.jobs import StageJobs
from hvkf.storage import Store
from hvkf.stored import read_record

FOLDER = "nightly"
STAGES = ("cache", "encode", "train", "evaluate")
# What may change without there being anything new to train.
NOT_WORK = ("workspace", "jobs", "render", "nightly")


class Outcome(StrEnum):
    """How a night ended."""

    PROMOTED = "promoted"
    KEPT = "kept"  # the LoRA in use stays: the new one was not found better
    SKIPPED = "skipped"
    STOPPED = "stopped"  # its budget was spent, or it was told to
    FAILED = "failed"


JUDGED = (Outcome.PROMOTED, Outcome.KEPT)


class NightRecord(Record):
    """What a night did, and until when (in seconds since 1970) its process was last heard.

    `fingerprint` is the digest of the data set and the settings; `gpu_seconds` is what its jobs
    have used; `outcome` is None while it runs.
    """

    format_version: int = FORMAT_VERSION
    name: str
    number: int
    owner: str
    started_at: str
    lease_until_s: float
    ended_at: str | None = None
    outcome: Outcome | None = None
    reason: str = ""
    fingerprint: str | None = None
    run_id: str | None = None
    began_from: str | None = None
    evaluation: str | None = None
    gpu_seconds: float = 0.0


class Decision(NamedTuple):
    """What the gate said of a new LoRA."""

    promoted: bool
    reason: str


class Steps(Protocol):
    """What a night has others do."""

    def check(self, config: Config) -> None:
        """Refuse settings with which a later stage cannot work, hours later: BadInput."""

    def run(self, stage: str, config: Config, timeout_s: float | None) -> Summary:
        """Run a stage; OutOfBudget when it takes longer than `timeout_s`."""

    def in_use(self, config: Config) -> str | None:
        """Name the LoRA in use, so that it can be trained on from; None when there is none yet."""

    def judge(self, config: Config, evaluation: Summary) -> Decision:
        """Decide by an evaluation, and promote if so decided."""


class NightRefused(BadInput):
    """Another night of the same name is running."""


class OutOfBudget(WorkStopped):
    """The night's budget is spent."""


def night_path(name: str, number: int) -> str:
    """Where a night's record lies."""
    return numbered_path(f"{FOLDER}/{name}", number)


def nights(store: Store, name: str) -> list[NightRecord]:
    """Read the records of all nights, oldest first."""
    return [read_record(store, path, NightRecord) for path in numbered(store, f"{FOLDER}/{name}")]


def fingerprint(config: Config, catalog: str) -> str:
    """Name the data set and the settings that a night would train with."""
    settings = config.model_dump(mode="json", exclude=set(NOT_WORK))
    settings["experiment"].pop("run_id")  # a night names its run itself
    return digest([catalog, settings, config.nightly.begin_from])


def num_gpus(config: Config, stage: str) -> int:
    """Count the GPUs (on a machine without: the processes) that a stage's job holds."""
    jobs: StageJobs = getattr(config.jobs, stage)
    pods = jobs.nodes if stage == "train" and jobs.gpus_per_pod else jobs.workers
    return pods * max(1, jobs.gpus_per_pod)


class Night:
    """A night that holds the lease on its name from `begin` to its end.

    Args:
        config: The deployed settings.
        store: The workspace.
        owner: Who runs this; the same owner's retry takes its own night up again.
        clock: Seconds since 1970.
    """

    def __init__(
        self, config: Config, store: Store, owner: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._config, self._store, self._clock = config, store, clock
        self._lock = threading.RLock()  # a thread of the caller's renews the lease
        self._running: tuple[float, int] | None = None  # when a job began, and its GPUs
        self.record = self._begin(owner)

    def _begin(self, owner: str) -> NightRecord:
        name = self._config.nightly.name
        before = nights(self._store, name)
        if before and before[-1].outcome is None:
            latest = before[-1]
            if latest.owner == owner:
                self.record = latest
                return self._change(lease_until_s=self._lease_end())
            if latest.lease_until_s > self._clock():
                raise _refused(latest)
        record = NightRecord(
            name=name,
            number=before[-1].number + 1 if before else 1,
            owner=owner,
            started_at=_written(self._clock()),
            lease_until_s=self._lease_end(),
        )
        try:
            self._store.put_new(night_path(name, record.number), record.to_json())
        except AlreadyExists:
            winner = read_record(self._store, night_path(name, record.number), NightRecord)
            if winner != record:  # the answer to this very put may have been lost
                raise _refused(winner) from None
        note_completed(self._store, night_path(name, record.number))
        return record

    def _lease_end(self) -> float:
        return self._clock() + 60 * self._config.nightly.lease_minutes

    def _change(self, **changes: object) -> NightRecord:
        with self._lock:
            changed = NightRecord.model_validate({**self.record.model_dump(), **changes})
            self._store.put(night_path(changed.name, changed.number), changed.to_json())
            self.record = changed
            return changed

    def renew(self) -> None:
        """Say that this night is alive, and what it has used; call it a few times a lease.

        Raises:
            WorkStopped: it was silent for so long that another night began.
        """
        name, number = self.record.name, self.record.number
        if self._store.exists(night_path(name, number + 1)):
            raise WorkStopped(
                f"Night {number} of {name!r} was silent for longer than nightly.lease_minutes="
                f"{self._config.nightly.lease_minutes:g}, and night {number + 1} began: it goes on."
            )
        with self._lock:
            if self.record.outcome is None:
                self._account()
                self._change(lease_until_s=self._lease_end())

    def _account(self) -> None:
        """Add what the running job has used since it was last asked."""
        with self._lock:
            if self._running is not None:
                (since_s, gpus), now_s = self._running, self._clock()
                used = self.record.gpu_seconds + (now_s - since_s) * gpus
                self.record = self.record.model_copy(update={"gpu_seconds": used})
                self._running = (now_s, gpus)

    def run(self, steps: Steps) -> NightRecord:
        """Do the night's work, and record how it ended.

        Raises:
            HvkfError: the fault of a stage; it is recorded as the night's outcome.
        """
        try:
            outcome, reason = self._work(steps)
        except OutOfBudget as fault:
            outcome, reason = Outcome.STOPPED, str(fault)
        except HvkfError as fault:
            stopped = isinstance(fault, WorkStopped)
            self._end(Outcome.STOPPED if stopped else Outcome.FAILED, str(fault))
            raise
        except BaseException as fault:  # told to stop by whoever runs this: the next may begin
            self._end(Outcome.STOPPED, f"ended by {type(fault).__name__}: {fault}")
            raise
        return self._end(outcome, reason)

    def _end(self, outcome: Outcome, reason: str) -> NightRecord:
        ended_at = _written(self._clock())
        return self._change(outcome=outcome, reason=reason, ended_at=ended_at)

    def _work(self, steps: Steps) -> tuple[Outcome, str]:
        steps.check(self._config)
        self._run(steps, "ingest", self._config)
        catalog = newest_catalog(self._store, self._config.ingest.dataset).catalog
        wanted = fingerprint(self._config, catalog)
        if reason := self._nothing_new(wanted, catalog):
            return Outcome.SKIPPED, reason
        config = self._prepare(steps, wanted)
        evaluation = None
        for stage in STAGES:
            evaluation = self._run(steps, stage, config)
        assert evaluation is not None
        self._change(evaluation=evaluation.result)
        decision = steps.judge(config, evaluation)
        return Outcome.PROMOTED if decision.promoted else Outcome.KEPT, decision.reason

    def _nothing_new(self, wanted: str, catalog: str) -> str | None:
        """Say why there is nothing to train, if so."""
        judged = [
            night for night in nights(self._store, self.record.name) if night.outcome in JUDGED
        ]
        if not judged or judged[-1].fingerprint != wanted:
            return None
        last = judged[-1]
        return (
            f"nothing is new: data ({catalog}) and settings are those of night {last.number} "
            f"({last.started_at}), which trained {last.run_id}: {last.outcome}"
        )

    def _prepare(self, steps: Steps, wanted: str) -> Config:
        """Name the run by its work, so that a night after a crash goes on with it."""
        start = None
        if self._config.nightly.begin_from == "registry":
            start = steps.in_use(self._config)
        run_id = f"{self.record.name}-{digest([wanted, start])[:12]}"
        self._change(fingerprint=wanted, run_id=run_id, began_from=start or NONE)
        experiment = self._config.experiment.model_copy(update={"run_id": run_id})
        network = self._config.network
        if start is not None or self._config.nightly.begin_from == "scratch":
            network = network.model_copy(update={"lora_weights": start})
        return self._config.model_copy(update={"experiment": experiment, "network": network})

    def _run(self, steps: Steps, stage: str, config: Config) -> Summary:
        with self._budget(config, stage) as timeout_s:
            return steps.run(stage, config, timeout_s)

    @contextmanager
    def _budget(self, config: Config, stage: str) -> Iterator[float | None]:
        """Count a stage's GPU time; yield how many seconds it may take, None where it is free."""
        if stage in ("ingest", "cache"):
            yield None
            self.renew()
            return
        gpus = num_gpus(config, stage)
        limit_hours = config.nightly.max_gpu_hours
        left_s = limit_hours * 3600 - self.record.gpu_seconds
        if left_s <= 0:
            raise self._spent(stage, limit_hours)
        self._running = (self._clock(), gpus)
        try:
            yield left_s / gpus
        except OutOfBudget:
            self._account()
            raise self._spent(stage, limit_hours) from None
        finally:
            self._account()
            self._running = None
        self.renew()

    def _spent(self, stage: str, limit_hours: float) -> OutOfBudget:
        return OutOfBudget(
            f"the budget nightly.max_gpu_hours={limit_hours:g} is spent in {stage} "
            f"({self.record.gpu_seconds / 3600:.2f} GPU hours): what is done is kept, and the next "
            "night goes on from there"
        )


def _refused(running: NightRecord) -> NightRefused:
    return NightRefused(
        f"Night {running.number} of {running.name!r} is running since {running.started_at} (begun "
        f"by {running.owner}): two at once are refused. If its process is gone, its lease ends at "
        f"{_written(running.lease_until_s)}."
    )


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
