"""The flow of the train stage."""

from prefect import flow

from flows.forms import TrainForm
from flows.stage import run_stage
from hvkf.records import Summary


@flow(name="train", persist_result=False)
def train(request: TrainForm) -> Summary:
    """Reads latents and the transformer; writes checkpoints and the LoRA (runs/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_stage("train", request.to_config())
