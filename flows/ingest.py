"""The flow of the ingest stage."""

from prefect import flow

from flows.stage import run_stage
from hvkf.config import Config
from hvkf.records import Summary


@flow(name="ingest")
def ingest(config: Config) -> Summary:
    """Reads a table of videos and captions; writes a catalog of clips (datasets/).

    Args:
        config: All settings; the stage reads its own sections.
    """
    return run_stage("ingest", config)
