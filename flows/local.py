"""Running the pipeline flow on this machine, with a Prefect server of its own."""

import os
from pathlib import Path

from flows.server import answers, temporary_server
from hvkf.config import Config
from hvkf.errors import TryAgain
from hvkf.model_source import cache_folder
from hvkf.records import Summary
from hvkf.redaction import without_secrets
from hvkf.storage import open_folder

# Nothing is sent anywhere, and a fault is told once, in hvkf's own sentence.
PREFECT_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
}


def run_pipeline(config: Config) -> list[Summary]:
    """Run the chain as one flow, on the server of PREFECT_API_URL or on one of its own.

    Prefect's own files lie in the workspace's folder, or in the cache where that is in S3.
    """
    open_folder(config.workspace)  # one that cannot be is refused before a server is started
    in_folder = "://" not in config.workspace
    home = (
        Path(config.workspace).absolute() / ".prefect" if in_folder else cache_folder() / "prefect"
    )
    home.mkdir(parents=True, exist_ok=True)
    for name, value in {**PREFECT_SETTINGS, "PREFECT_HOME": str(home)}.items():
        os.environ.setdefault(name, value)
    if address := os.environ.get("PREFECT_API_URL"):
        if not answers(address):
            raise TryAgain(
                f"Prefect's server PREFECT_API_URL={without_secrets(address)} does not answer: "
                "start it, or unset PREFECT_API_URL, and the run has a server of its own."
            )
        return _run(config)
    with temporary_server(home) as address:
        os.environ["PREFECT_API_URL"] = address
        return _run(config)


def _run(config: Config) -> list[Summary]:
    from flows.pipeline import pipeline_of  # reads Prefect's settings when imported

    return pipeline_of(config)
