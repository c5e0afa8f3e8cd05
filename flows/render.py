"""The flow of the render stage."""

from typing import Any

from prefect import State, flow

from flows.forms import RenderForm
from flows.stage import run_form
from hvkf.records import Summary


@flow(name="render", persist_result=False, validate_parameters=False)
def render(request: RenderForm) -> Summary | State[Any]:
    """Reads a manifest of keyframe pairs and a LoRA; writes videos (renders/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_form("render", RenderForm, request)
