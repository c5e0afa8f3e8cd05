"""The flow of the encode stage."""

from typing import Any

from prefect import State, flow

from flows.forms import EncodeForm
from flows.stage import run_form
from hvkf.records import Summary


@flow(name="encode", persist_result=False, validate_parameters=False)
def encode(request: EncodeForm) -> Summary | State[Any]:
    """Reads scenes and the checkpoint's encoders; writes latent shards (latents/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_form("encode", EncodeForm, request)
