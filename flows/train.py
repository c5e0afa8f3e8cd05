"""The flow of the train stage."""

from typing import Any

from prefect import State, flow

from flows.forms import TrainForm
from flows.stage import run_form
from hvkf.records import Summary


@flow(name="train", persist_result=False, validate_parameters=False)
def train(request: TrainForm) -> Summary | State[Any]:
    """Reads latents and the transformer; writes checkpoints and the LoRA (runs/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_form("train", TrainForm, request)
