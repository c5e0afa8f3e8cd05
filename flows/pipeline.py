"""The whole chain as one flow: each stage as a flow of its own, one after the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact

from flows.endings import result_of, told
from flows.form_errors import read_form
from flows.forms import PipelineForm
from flows.labels import label_this_run, run_name
from flows.links import links_of, run_link
from flows.server import wait_for_server
from flows.stage import run_stage
from hvkf.config import Config
from hvkf.config_checks import check_before_start
from hvkf.errors import HvkfError, WorkStopped
from hvkf.records import Summary, digest
from hvkf.storage import open_folder

STAGES = ("ingest", "cache", "encode", "train", "evaluate")

# Settings that runs below this process's run work by; their parameters name them by digest.
_settings: dict[str, Config] = {}


class Ran(NamedTuple):
    """A stage of a chain that has run: its flow run, and what came of it."""

    stage: str
    run_id: object
    summary: Summary | None
    error: str = ""
    ended: str = "failed"


@flow(name="pipeline", persist_result=False, validate_parameters=False)
def pipeline(request: PipelineForm) -> list[Summary] | State[Any]:
    """Run ingest, cache, encode, train, evaluate and, where a manifest is set, render.

    Args:
        request: The deployed settings to use, and what to change of them.
    """

    def work() -> list[Summary]:
        config = read_form(PipelineForm, request).to_config()
        label_this_run("pipeline", config)
        return run_chain(config)

    return told("pipeline", work)


@flow(name="pipeline", flow_run_name="{name}", persist_result=False)
def _pipeline_of(name: str, settings: str) -> list[Summary] | State[Any]:
    return told("pipeline", lambda: run_chain(_settings[settings]))


def pipeline_of(config: Config) -> list[Summary]:
    """Run the same chain with settings that were read from a file and the command line.

    Raises:
        HvkfError: the error that a stage ended by.
    """
    state = _pipeline_of(run_name("pipeline", config), _keep(config), return_state=True)
    summaries: list[Summary] = result_of(state)
    return summaries


def _keep(config: Config) -> str:
    """Keep settings for runs below this one, and name them: parameters are for people to read."""
    name = digest(config.model_dump(mode="json"))[:12]
    _settings[name] = config
    return name


def run_chain(config: Config) -> list[Summary]:
    """Run the stages of the chain, each as a flow run below the one that calls this.

    Raises:
        HvkfError: the error that a stage ended by; the summary says how far the chain came.
    """
    check_before_start(config, open_folder(config.workspace))
    stages = [*STAGES, *(["render"] if config.render.manifest is not None else [])]
    ran: list[Ran] = []
    try:
        return [run_below(stage, config, on_end=ran.append) for stage in stages]
    finally:
        _summarize(ran, stages, config)


def run_below(
    stage: str,
    config: Config,
    timeout_s: float | None = None,
    on_end: Callable[[Ran], None] = lambda ran: None,
) -> Summary:
    """Run a stage as a flow run of its own.

    Args:
        stage: The stage.
        config: All settings.
        timeout_s: Seconds that its job may take.
        on_end: Is told what came of it.

    Raises:
        TimeoutError: its job took longer than `timeout_s`, and was stopped after saving.
        HvkfError: the error that it ended by.
    """
    below = _stage.with_options(name=stage, flow_run_name=run_name(stage, config))
    state: State[Any] = below(stage, _keep(config), timeout_s, return_state=True)
    run_id = state.state_details.flow_run_id
    try:
        summary: Summary = result_of(state)
    except (HvkfError, TimeoutError) as error:
        ended = "stopped" if isinstance(error, (WorkStopped, TimeoutError)) else "failed"
        on_end(Ran(stage, run_id, None, str(error).partition("\n")[0], ended))
        raise
    on_end(Ran(stage, run_id, summary))
    return summary


# No result is kept: a retry runs elsewhere, and finds in the workspace what is done.
@flow(persist_result=False)
def _stage(stage: str, settings: str, timeout_s: float | None) -> Summary | State[Any]:
    return told(stage, lambda: run_stage(stage, _settings[settings], timeout_s))


def _summarize(ran: list[Ran], stages: list[str], config: Config) -> None:
    """Say in one place what the stages made, with links to their runs and results."""
    lines = [f"# {run_name('pipeline', config)}", "", *lines_of(ran, config.workspace)]
    if left := stages[len(ran) :]:
        lines += [f"Not run: {', '.join(left)}.", ""]
    wait_for_server()
    create_markdown_artifact(
        key="pipeline-summary", markdown="\n".join(lines), description="What the chain made"
    )


def lines_of(ran: list[Ran], workspace: str) -> list[str]:
    """Say in Markdown what stages made."""
    lines: list[str] = []
    for entry in ran:
        if entry.summary is None:
            lines += [
                f"## {run_link(entry.stage, entry.run_id)}: {entry.ended}",
                "",
                entry.error,
                "",
            ]
            continue
        was = "done before" if entry.summary.reused else "done"
        lines += [f"## {run_link(entry.stage, entry.run_id)}: {was}", ""]
        lines += [f"- {line}" for line in entry.summary.text.splitlines()]
        lines += [f"- {link}" for link in links_of(entry.summary, workspace)]
        lines.append("")
    return lines
