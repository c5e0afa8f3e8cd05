"""The flow of the encode stage."""

from prefect import flow

from flows.forms import EncodeForm
from flows.stage import run_stage
from hvkf.records import Summary


@flow(name="encode", persist_result=False)
def encode(request: EncodeForm) -> Summary:
    """Reads scenes and the checkpoint's encoders; writes latent shards (latents/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_stage("encode", request.to_config())
