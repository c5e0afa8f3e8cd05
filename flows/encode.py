"""The flow of the encode stage."""

from prefect import flow

from flows.stage import run_stage
from hvkf.config import Config
from hvkf.records import Summary


@flow(name="encode")
def encode(config: Config) -> Summary:
    """Reads scenes and the checkpoint's encoders; writes latent shards (latents/).

    Args:
        config: All settings; the stage reads its own sections.
    """
    return run_stage("encode", config)
