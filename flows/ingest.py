"""The flow of the ingest stage."""

from prefect import flow

from flows.forms import IngestForm
from flows.stage import run_stage
from hvkf.records import Summary


@flow(name="ingest", persist_result=False)
def ingest(request: IngestForm) -> Summary:
    """Reads a table of videos and captions; writes a catalog of clips (datasets/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_stage("ingest", request.to_config())
