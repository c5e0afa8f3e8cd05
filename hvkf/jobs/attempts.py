"""What the end of a job on the cluster means for another: whether one is started, and why not."""

from collections.abc import Sequence

from hvkf.errors import BadInput, HvkfError, TryAgain
from hvkf.jobs import cluster_state as said
from hvkf.jobs.spec import STOPPED_CODE, JobSpec
from hvkf.jobs.turns import IN_TURNS
from hvkf.records import Part, Plan


class Incomplete(TryAgain):
    """A job ended well, and the ledger still lacks some of its parts."""


def is_done(plan: Plan, before: Sequence[Part], left: Sequence[Part]) -> bool:
    """Whether a job did what it was for; an adopted one may have done another turn's parts."""
    return len(left) < len(before) if plan.stage in IN_TURNS else not left


def further_starts(job: JobSpec, fault: HvkfError) -> int:
    """How often a job is started again."""
    if isinstance(fault, BadInput):
        return 0
    if not job.is_gang:
        # Parts have had their starts within theirs, but for those that were killed.
        again = isinstance(fault, (Incomplete, said.Killed))
        return job.jobs.max_attempts - 1 if again else 0
    return job.jobs.max_restarts if isinstance(fault, TryAgain) else job.jobs.max_attempts - 1


def severity(end: said.PodEnd) -> int:
    """Order ends: what no start mends, what the cluster did, other faults, what those led to."""
    if issubclass(end.fault, BadInput):
        return 0
    if end.code == STOPPED_CODE and not end.was_disrupted:
        return 4
    if end.cause.startswith("was "):
        return 1
    return 2 if end.fault is HvkfError else 3
