"""The flow of the render stage."""

from prefect import flow

from flows.stage import run_stage
from hvkf.config import Config
from hvkf.records import Summary


@flow(name="render")
def render(config: Config) -> Summary:
    """Reads a manifest of keyframe pairs and a LoRA; writes videos (renders/).

    Args:
        config: All settings; the stage reads its own sections.
    """
    return run_stage("render", config)
