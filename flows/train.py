"""The flow of the train stage."""

from prefect import flow

from flows.stage import run_stage
from hvkf.config import Config
from hvkf.records import Summary


@flow(name="train")
def train(config: Config) -> Summary:
    """Reads latents and the transformer; writes checkpoints and the LoRA (runs/).

    Args:
        config: All settings; the stage reads its own sections.
    """
    return run_stage("train", config)
