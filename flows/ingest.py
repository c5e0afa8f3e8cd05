"""The flow of the ingest stage."""

from typing import Any

from prefect import State, flow

from flows.forms import IngestForm
from flows.stage import run_form
from hvkf.records import Summary


@flow(name="ingest", persist_result=False, validate_parameters=False)
def ingest(request: IngestForm) -> Summary | State[Any]:
    """Reads a table of videos and captions; writes a catalog of clips (datasets/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_form("ingest", IngestForm, request)
