"""How runs are told apart in Prefect's pages: names and tags that say what they work on."""

from pathlib import PurePosixPath
from uuid import UUID

from prefect import get_client
from prefect.runtime import flow_run

from hvkf.config import Config

MAX_NAME = 120


def subject(stage: str, config: Config) -> str:
    """Say what a stage works on: a data set, a training run, a manifest, a night's name."""
    if stage == "nightly":
        return config.nightly.name
    if stage in ("train", "evaluate"):
        return config.experiment.run_id or config.experiment.name
    if stage == "render" and config.render.manifest is not None:
        return PurePosixPath(config.render.manifest).name
    return config.ingest.dataset


def run_name(stage: str, config: Config) -> str:
    """Name a run of a stage, or of a chain of them."""
    return f"{stage} {subject(stage, config)}"[:MAX_NAME]


def run_tags(stage: str, config: Config) -> list[str]:
    """Tag a run, so that the list of runs can be filtered."""
    tags = [stage, f"dataset: {config.ingest.dataset}"]
    if config.experiment.run_id is not None:
        tags.append(f"run: {config.experiment.run_id}")
    if stage in ("render", "pipeline") and config.render.manifest is not None:
        tags.append(f"manifest: {PurePosixPath(config.render.manifest).name}")
    return tags


def label_this_run(stage: str, config: Config) -> None:
    """Name and tag the flow run that this process is; it began with a name made up."""
    run_id = flow_run.get_id()
    if run_id is None:
        return
    tags = [*flow_run.get_tags(), *run_tags(stage, config)]
    with get_client(sync_client=True) as client:
        client.update_flow_run(
            UUID(run_id), name=run_name(stage, config), tags=list(dict.fromkeys(tags))
        )
