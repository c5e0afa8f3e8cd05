"""What to run: a stage's parts, named by the digest of the work and the attempt."""

from hvkf.errors import BadInput, HvkfError, Stopped, TryAgain
from hvkf.records import Part, Plan, Record, digest
from hvkf.settings.jobs import StageJobs

BAD_INPUT_CODE = 65
TRY_AGAIN_CODE = 75
STOPPED_CODE = 143


class JobSpec(Record):
    """A job: parts of a plan, to be run by a number of workers."""

    stage: str
    workspace: str
    plan: str
    parts: tuple[int, ...]
    attempt: int
    jobs: StageJobs

    @property
    def is_gang(self) -> bool:
        """Whether the workers do one part together, as ranks, rather than parts of their own."""
        return self.stage == "train"

    @property
    def name(self) -> str:
        """Name the job by its work and attempt: who asks for the same work finds this job."""
        work = digest([self.stage, self.workspace, self.plan])
        return f"hvkf-{self.stage}-{work[:12]}-{self.attempt}"


def stage_jobs(plan: Plan) -> StageJobs:
    """How the plan's configuration spreads this stage's work; stages without a setting: one."""
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
    )


def fault_of(exit_code: int, sentence: str) -> HvkfError | None:
    """Turn a worker's exit code back into the fault it ended with; None for success."""
    if exit_code == 0:
        return None
    if exit_code == BAD_INPUT_CODE:
        return BadInput(sentence)
    if exit_code == STOPPED_CODE:
        return Stopped(sentence)
    if exit_code == TRY_AGAIN_CODE or exit_code < 0:
        return TryAgain(sentence)
    return HvkfError(sentence)
