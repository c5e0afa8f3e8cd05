"""Running a plan's parts from the command line, with their progress."""

from hvkf import ledger
from hvkf.jobs.run import run_plan
from hvkf.jobs.spec import Listener
from hvkf.ledger import pending_parts
from hvkf.progress import WorkerBars, display
from hvkf.records import Plan
from hvkf.storage import Store


def run_parts(plan: Plan, store: Store) -> None:
    """Store the plan for its workers and run its parts; progress and words go to standard error.

    Raises:
        HvkfError: the error that ended the job.
    """
    ledger.put_plan(store, plan)
    with display() as shown:
        bars = WorkerBars(shown, len(pending_parts(store, plan)))
        run_plan(plan, store, Listener(bars.show, shown.say))
