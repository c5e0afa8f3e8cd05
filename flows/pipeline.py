"""The whole chain as one flow: each stage as a flow of its own, one after the other."""

from prefect import flow

from flows.forms import PipelineForm
from flows.stage import run_stage
from hvkf.config import Config
from hvkf.records import Summary

STAGES = ("ingest", "cache", "encode", "train", "evaluate")


@flow(name="pipeline", persist_result=False)
def pipeline(request: PipelineForm) -> list[Summary]:
    """Run ingest, cache, encode, train, evaluate and, where a manifest is set, render.

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_chain(request.to_config())


@flow(name="pipeline from the shell", persist_result=False)
def pipeline_of(config: Config) -> list[Summary]:
    """Run the same chain with settings that were read from a file and the command line.

    Args:
        config: All settings.
    """
    return run_chain(config)


def run_chain(config: Config) -> list[Summary]:
    """Run the stages of the chain, each as a flow run below the one that calls this."""
    stages = [*STAGES, *(["render"] if config.render.manifest is not None else [])]
    return [run_below(stage, config) for stage in stages]


def run_below(stage: str, config: Config, timeout_s: float | None = None) -> Summary:
    """Run a stage as a flow run of its own.

    Raises:
        TimeoutError: its job took longer than `timeout_s`, and was stopped after saving.
    """
    below = _stage.with_options(name=f"{stage} of a chain")
    summary: Summary = below(stage, config, timeout_s)
    return summary


# No result is kept: a retry runs elsewhere, and finds in the workspace what is done.
@flow(flow_run_name="{stage}", persist_result=False)
def _stage(stage: str, config: Config, timeout_s: float | None) -> Summary:
    return run_stage(stage, config, timeout_s)
