"""Runs a plan's parts where its settings say: on this machine, or as pods of a cluster."""

from collections.abc import Callable

from hvkf.jobs import local
from hvkf.jobs.one_at_a_time import alone
from hvkf.jobs.spec import Listener, stage_jobs
from hvkf.records import Plan
from hvkf.storage import Store


def run_plan(
    plan: Plan,
    store: Store,
    listener: Listener,
    owner: str | None = None,
    moves: Callable[[], bool] = lambda: False,
) -> None:
    """Run a plan's parts until the ledger has them all; who asks for the same work waits for it.

    Args:
        plan: The plan, as it lies in the workspace.
        store: The workspace.
        listener: Who hears of progress, and the workers' words.
        owner: On a cluster, the run that a job is kept for; left out, one is made up.
        moves: Whether the owner, when it is told to end, goes on elsewhere: its job then stays.

    Raises:
        HvkfError: the fault that ended the job.
    """
    if stage_jobs(plan).executor == "kubernetes":
        from hvkf.jobs import cluster  # importing the Kubernetes client takes half a second

        cluster.run_plan(plan, store, listener, owner, moves)
    else:
        with alone(plan, store, listener.on_log):
            local.run_plan(plan, store, listener)
