"""The flow of the render stage."""

from prefect import flow

from flows.forms import RenderForm
from flows.stage import run_stage
from hvkf.records import Summary


@flow(name="render", persist_result=False)
def render(request: RenderForm) -> Summary:
    """Reads a manifest of keyframe pairs and a LoRA; writes videos (renders/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_stage("render", request.to_config())
