"""The training runs of a workspace: how far each is, how good, at what cost; newest first."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple

from hvkf.listed import (
    UNKNOWN,
    AtWork,
    Listing,
    Reading,
    in_columns,
    is_of_kind,
    shown_hours,
    shown_time,
    time_of,
)
from hvkf.nightly import FOLDER as NIGHTS
from hvkf.nightly import NightRecord, Outcome
from hvkf.records import Plan, Record, RunRecord, TrainResult, plan_path
from hvkf.registry import FOLDER as REGISTRY
from hvkf.registry import Registered
from hvkf.stages.evaluate_gate import DECISIONS, Decision
from hvkf.storage import Store
from hvkf.stored_kinds import kind_of
from hvkf.training.cost import TrainTiming, device_hours, timings_folder
from hvkf.training.losses import NAME as LOSSES_NAME
from hvkf.training.losses import decode_line
from hvkf.training.runs import list_checkpoints, result_path, run_folder, work_digest

State = Literal["waiting", "running", "stopped", "failed", "done"]
TITLE = ("RUN", "STATE", "STEPS", "LOSS", "VERDICT", "DEVICE-HOURS", "BEGUN (UTC)")
NOT_EVALUATED, NOT_JUDGED = "", "evaluated"


class Run(Record):
    """A training run.

    `state`: *waiting* has a plan and no checkpoint, *running* a process at work, *stopped* neither
    (the same command goes on), *failed* the word of a night, *done* a result. `steps` are those of
    the last whole checkpoint, `max_steps` those planned, where steps were set. `verdict` is the
    gate's last one, or that there is only an evaluation; `in_use` are the names that render with
    this run. `device_hours` is the time of its training, times ranks. Times are in UTC.
    """

    run_id: str
    state: State
    reason: str = ""
    steps: int = 0
    max_steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    verdict: str = NOT_EVALUATED
    in_use: tuple[str, ...] = ()
    device_hours: float | None = None
    begun_at: str | None = None
    ended_at: str | None = None

    def cells(self) -> tuple[str, ...]:
        """Write its row of the table."""
        of = "" if self.max_steps in (None, self.steps) else f"/{self.max_steps}"
        used = f" (in use: {', '.join(self.in_use)})" if self.in_use else ""
        return (
            self.run_id,
            self.state,
            f"{self.steps}{of}",
            UNKNOWN if self.loss is None else f"{self.loss:.4g}",
            f"{self.verdict or UNKNOWN}{used}",
            shown_hours(self.device_hours),
            shown_time(self.begun_at),
        )


class RunList(Listing):
    """Runs, newest first, and the number of older ones; what is foreign, and what is damaged."""

    runs: tuple[Run, ...]

    def lines(self) -> list[str]:
        """Write the table, and under it why runs failed."""
        if not self.runs:
            return [f"no runs in {self.workspace}: `hvkf train` begins one"]
        lines = in_columns(TITLE, [run.cells() for run in self.runs])
        return lines + [f"{run.run_id}: {run.reason}" for run in self.runs if run.reason]


class _Judged(NamedTuple):
    """What was said of runs, each by its id; of registered names, which render with it."""

    verdicts: Mapping[str, str]
    in_use: Mapping[str, list[str]]
    nights: Mapping[str, NightRecord]


def list_runs(
    store: Store, limit: int | None = None, clock: Callable[[], float] = time.time
) -> RunList:
    """List runs, newest first; nothing is written, and what is damaged ends nothing.

    Args:
        store: The workspace.
        limit: How many at most; None for all.
        clock: Seconds since 1970.
    """
    reading = Reading(store)
    paths = list(store.list("runs"))
    # The list of a run's training videos alone is what `hvkf gc` leaves of one that it removed.
    ours = [path for path in paths if kind_of(path) and not is_of_kind(path, "training videos")]
    begun = {run_id: _begun_s(store, own) for run_id, own in _by_run(ours).items()}
    at_work = AtWork(reading, clock())
    waiting = _waiting(reading, at_work, begun)
    newest = sorted(begun, key=lambda run_id: (-begun[run_id], run_id))
    names = [*waiting, *newest]
    judged = _judged(reading)
    runs = tuple(
        _run(reading, run_id, at_work, judged, begun.get(run_id)) for run_id in names[:limit]
    )
    return RunList(
        workspace=store.url,
        runs=runs,
        num_older=len(names) - len(runs),
        foreign=tuple(path for path in paths if kind_of(path) is None),
        damaged=tuple(reading.damaged),
    )


def _by_run(paths: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(path.split("/")[1], []).append(path)
    return found


def _begun_s(store: Store, paths: list[str]) -> float:
    """Say when a run began: when its record was put; where that is gone, what else there is."""
    times = []
    for path in [path for path in paths if is_of_kind(path, "run records")] or paths:
        with suppress(FileNotFoundError):  # deleted since it was listed
            times.append(store.stat(path).modified_s)
    return min(times, default=0.0)


def _waiting(reading: Reading, at_work: AtWork, begun: Mapping[str, float]) -> list[str]:
    """List the runs that are planned and have not begun."""
    paths = [plan_path(stage, digest) for stage, digest in at_work.open if stage == "train"]
    plans = reading.records(sorted(paths), Plan)
    names = {str(plan.inputs["run"]["run_id"]) for plan in plans}
    return sorted(names - begun.keys())


def _judged(reading: Reading) -> _Judged:
    store = reading.store
    verdicts = {
        path.split("/")[1]: NOT_JUDGED
        for path in store.list("evals")
        if is_of_kind(path, "metrics")
    }
    decided = [path for path in store.list(DECISIONS) if is_of_kind(path, "decisions")]
    decided.sort(key=lambda path: store.stat(path).modified_s)
    for decision in reading.records(decided, Decision):
        verdicts[decision.evaluation.split("/")[1]] = decision.verdict.outcome
    in_use: dict[str, list[str]] = {}
    for name in reading.of_kind(REGISTRY, Registered, "registered names"):
        if name.in_use.run_id is not None:
            in_use.setdefault(name.in_use.run_id, []).append(name.name)
    nights = reading.of_kind(NIGHTS, NightRecord, "nights")
    by_run = {night.run_id: night for night in nights if night.run_id is not None}
    return _Judged(verdicts, in_use, by_run)


def _run(
    reading: Reading, run_id: str, at_work: AtWork, judged: _Judged, begun_s: float | None
) -> Run:
    store = reading.store
    record = reading.record(f"{run_folder(run_id)}/run.json", RunRecord)
    result = reading.record(result_path(run_id), TrainResult)
    whole = list_checkpoints(store, run_id).whole
    steps = result.num_steps if result else max(whole, default=0)
    timings = reading.of_kind(timings_folder(run_id), TrainTiming, "training times")
    night = judged.nights.get(run_id)
    state = _state(record, result, steps, at_work, night, is_planned=begun_s is None)
    return Run(
        run_id=run_id,
        state=state,
        reason=night.reason if night is not None and state == "failed" else "",
        steps=steps,
        max_steps=_max_steps(record),
        loss=result.loss if result else _last_loss(reading, run_id),
        validation_loss=result.validation_loss if result else None,
        verdict=judged.verdicts.get(run_id, NOT_EVALUATED),
        in_use=tuple(judged.in_use.get(run_id, ())),
        device_hours=device_hours(timings),
        begun_at=time_of(begun_s),
        ended_at=time_of(store.stat(result_path(run_id)).modified_s) if result else None,
    )


def _state(
    record: RunRecord | None,
    result: TrainResult | None,
    steps: int,
    at_work: AtWork,
    night: NightRecord | None,
    *,
    is_planned: bool,
) -> State:
    if result is not None:
        return "done"
    work = None if record is None else work_digest(record)
    if work in at_work.running:
        return "running"
    if night is not None and night.outcome == Outcome.FAILED:
        return "failed"
    if is_planned or (steps == 0 and ("train", work) in at_work.open):
        return "waiting"
    return "stopped"


def _max_steps(record: RunRecord | None) -> int | None:
    hparams = {} if record is None else record.settings.get("hparams", {})
    steps = hparams.get("max_train_steps") if isinstance(hparams, dict) else None
    return steps if isinstance(steps, int) else None


def _last_loss(reading: Reading, run_id: str) -> float | None:
    """Read the last loss of a run that has not ended."""
    path = f"{run_folder(run_id)}/{LOSSES_NAME}"

    def read() -> float:
        lines = reading.store.read(path).splitlines()
        row = decode_line(reading.store, path, len(lines), lines[-1] if lines else b"")
        return float(row["loss"])

    return reading.told(read)
