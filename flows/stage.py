"""How every stage's flow goes: plan where the flow runs, one task for the job, commit."""

import subprocess
import sys
from typing import Any

from prefect import State, get_run_logger, task
from prefect._internal.control_listener import get_intent  # no public way; Prefect is pinned
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.endings import kept, result_of, stop_told, told
from flows.form_errors import read_form
from flows.forms import Form
from flows.labels import label_this_run
from flows.links import links_of
from flows.server import wait_for_server
from flows.watching import watch
from hvkf.config import Config
from hvkf.errors import HvkfError
from hvkf.jobs.run import run_plan
from hvkf.jobs.spec import ERROR_PREFIX, fault_of
from hvkf.ledger import pending_parts, read_plan
from hvkf.records import Plan, Planned, Summary
from hvkf.shown import are, counted
from hvkf.storage import Store, open_store
from hvkf.training.runs import list_checkpoints, step_name

QUOTED = ("render",)
PICTURED = {
    "cache": "the first samples of each bucket",
    "train": "loss and validation loss over the steps",
    "evaluate": "given keyframes beside the made video's first and last frame",
    "render": "first and last frame of the first videos",
}


def run_form(stage: str, form: type[Form], values: object) -> Summary | State[Any]:
    """Run one stage as its form says, in a run that is named by what it works on.

    The form is read here, for Prefect's own check of parameters ends a run with a traceback.
    """

    def work() -> Summary:
        config = read_form(form, values).to_config()
        label_this_run(stage, config)
        return run_stage(stage, config)

    return told(stage, work)


def run_stage(stage: str, config: Config, timeout_s: float | None = None) -> Summary:
    """Run one stage to its commit; what was done before is found done.

    Raises:
        HvkfError: the fault with which a step of the stage ended.
        TimeoutError: its job took longer than `timeout_s`, and was stopped after saving.
    """
    planned = Planned.model_validate_json(
        run_hvkf([stage, "plan", "--config", "-"], config.model_dump_json())
    )
    _tell(stage, planned)
    summary = planned.done or _work(stage, planned, timeout_s)
    wait_for_server()
    create_markdown_artifact(
        key=f"{stage}-summary",
        markdown=_markdown(summary, planned.workspace),
        description=f"What {stage} did",
    )
    return summary


def _tell(stage: str, planned: Planned) -> None:
    """Say what the plan says to people, before any of it is done."""
    if not planned.note:
        return
    get_run_logger().info("%s", planned.note)
    if stage in QUOTED:
        wait_for_server()
        lines = ["# What it will take", "", *(f"- {line}" for line in planned.note.splitlines())]
        create_markdown_artifact(
            key=f"{stage}-quote", markdown="\n".join(lines), description=f"The quote of {stage}"
        )


def _work(stage: str, planned: Planned, timeout_s: float | None) -> Summary:
    if planned.num_pending:
        job = run_job.with_options(name=f"{stage} job", timeout_seconds=timeout_s)
        result_of(job(stage, planned, return_state=True))
    arguments = [stage, "commit", "--workspace", planned.workspace, "--plan", planned.plan]
    return Summary.model_validate_json(run_hvkf(arguments, ""))


@task(persist_result=False)
def run_job(stage: str, planned: Planned) -> State[Any] | None:
    """Run the parts of a plan that the ledger lacks."""

    def work() -> None:
        store = open_store(planned.workspace)
        plan = read_plan(store, stage, planned.plan)
        with stop_told(lambda: what_is_saved(plan, store)), watch(plan, store) as listener:
            run_plan(plan, store, listener, flow_run.get_id(), is_moved)

    return kept(work)


def what_is_saved(plan: Plan, store: Store) -> str:
    """Say what of a stage's work is kept when it is stopped; empty where nobody knows."""
    try:
        if plan.stage == "train":
            run_id = str(plan.inputs["run"]["run_id"])
            steps = list_checkpoints(store, run_id).whole
            if not steps:
                return f"Run {run_id} has no checkpoint yet."
            return f"Run {run_id} is saved at {step_name(steps[-1])}."
        num_done = len(plan.parts) - len(pending_parts(store, plan))
    except (HvkfError, OSError):
        return ""
    num_parts = len(plan.parts)
    return f"{num_done} of {counted(num_parts, 'part')} {are(num_parts)} done."


def is_moved() -> bool:
    """Whether this process is told to end because its run goes on in another pod.

    Prefect's Kubernetes worker makes flow pods that hand their run back when they are evicted.
    """
    return get_intent() == "reschedule"


def run_hvkf(arguments: list[str], standard_input: str) -> str:
    """Run a light step of hvkf in a process of its own, and return its last line.

    Raises:
        HvkfError: the fault that it ended with.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "hvkf.cli", *arguments],
        input=standard_input,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        _keep_table(arguments[0], ended.stderr.splitlines())
        said = [line for line in ended.stderr.splitlines() if line.startswith(ERROR_PREFIX)]
        sentence = said[-1].removeprefix(ERROR_PREFIX) if said else ended.stderr[-2000:]
        fault = fault_of(ended.returncode, sentence)
        assert fault is not None
        raise fault
    return ended.stdout.splitlines()[-1]


def _keep_table(stage: str, said: list[str]) -> None:
    """Keep the table of all errors that a step printed above its sentence, if it did."""
    table = [line for line in said if line.startswith("|")]
    if table:
        wait_for_server()
        create_markdown_artifact(
            key=f"{stage}-errors", markdown="\n".join(table), description=f"Errors of {stage}"
        )


def _markdown(summary: Summary, workspace: str) -> str:
    lines = [f"# {summary.stage}", "", "done before" if summary.reused else "done", ""]
    lines += [f"- {line}" for line in summary.text.splitlines()]
    lines += [f"- {link}" for link in links_of(summary, workspace)]
    if summary.stage in PICTURED:
        lines += ["", _picture(summary, workspace)]
    return "\n".join(lines)


def _picture(summary: Summary, workspace: str) -> str:
    """Draw what a stage made; a picture that cannot be drawn fails nothing, and says why."""
    command = ["picture", summary.stage, summary.result, "--workspace", workspace]
    try:
        return f"![{PICTURED[summary.stage]}]({run_hvkf(command, '')})"
    except HvkfError as fault:
        return f"*There is no picture: {fault}*"
