"""What to run: a stage's parts, named by the digest of the work and the attempt."""

from collections.abc import Callable
from typing import NamedTuple

from hvkf.errors import BadInput, GaveWay, HvkfError, OwnError, TryAgain, WorkStopped
from hvkf.records import Part, Plan, Record, digest
from hvkf.settings.jobs import ClusterJobs, StageJobs

BAD_INPUT_CODE = 65
TRY_AGAIN_CODE = 75
KILLED_CODE = 137
STOPPED_CODE = 143


UNKNOWN = "?"
ERROR_PREFIX = "error: "
NORMAL_PRIORITY = "normal"

Progress = dict[str, object]


def _unheard(line: str) -> None:
    """Leave out what only a run's log has room for."""


class Listener(NamedTuple):
    """What an executor tells its caller while a job runs.

    `on_detail` takes long forms of what `on_log` was told in short; a terminal leaves them out.
    """

    on_progress: Callable[[int, Progress], None]
    on_log: Callable[[str], None]
    on_detail: Callable[[str], None] = _unheard


class JobSpec(Record):
    """A job: parts of a plan, to be run by a number of workers.

    In a dry run, `plan` is UNKNOWN and `parts` is None where only an earlier stage will know them.
    """

    stage: str
    workspace: str
    plan: str
    parts: tuple[int, ...] | None
    attempt: int
    jobs: StageJobs
    priority: str = NORMAL_PRIORITY
    cluster: ClusterJobs = ClusterJobs()

    @property
    def is_gang(self) -> bool:
        """Whether the workers do one part together, as ranks, rather than parts of their own."""
        return self.stage == "train"

    @property
    def work(self) -> str:
        """Name the work: who asks for the same one finds this job."""
        if self.plan == UNKNOWN:
            return UNKNOWN
        return digest([self.stage, self.workspace, self.plan])[:12]

    @property
    def name(self) -> str:
        """Name the job by its work and attempt."""
        return f"hvkf-{self.stage}-{self.work}-{self.attempt}"


def stage_jobs(plan: Plan) -> StageJobs:
    """How the plan's configuration spreads this stage's work."""
    settings = plan.config.get("jobs", {}).get(plan.stage)
    return StageJobs.model_validate(settings) if settings else StageJobs()


def job_for(plan: Plan, workspace: str, parts: list[Part], attempt: int) -> JobSpec:
    """Describe the job that does the given parts."""
    return JobSpec(
        stage=plan.stage,
        workspace=workspace,
        plan=plan.digest,
        parts=tuple(part.index for part in parts),
        attempt=attempt,
        jobs=stage_jobs(plan),
        priority=plan.config.get(plan.stage, {}).get("priority", NORMAL_PRIORITY),
        cluster=ClusterJobs.model_validate(plan.config.get("jobs", {}).get("cluster", {})),
    )


def fault_of(exit_code: int, sentence: str) -> HvkfError | None:
    """Turn a worker's exit code back into the fault it ended with; None for success."""
    if exit_code == 0:
        return None
    if exit_code == BAD_INPUT_CODE:
        return BadInput(sentence)
    if exit_code == OwnError.exit_code:
        return OwnError(sentence)
    if exit_code == GaveWay.exit_code:
        return GaveWay(sentence)
    if exit_code == STOPPED_CODE:
        return WorkStopped(sentence)
    if exit_code == TRY_AGAIN_CODE or exit_code < 0:
        return TryAgain(sentence)
    return HvkfError(sentence)
