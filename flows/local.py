"""Running the pipeline flow on this machine, with Prefect's server in this process."""

import os
from pathlib import Path

from hvkf.config import Config
from hvkf.model_source import cache_folder
from hvkf.records import Summary

# Nothing is sent anywhere, and a fault is told once, in hvkf's own sentence.
PREFECT_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
}


def run_pipeline(config: Config) -> list[Summary]:
    """Run the chain as one flow; Prefect's own files go beside the workspace's."""
    in_folder = "://" not in config.workspace
    home = (
        Path(config.workspace).absolute() / ".prefect" if in_folder else cache_folder() / "prefect"
    )
    for name, value in {**PREFECT_SETTINGS, "PREFECT_HOME": str(home)}.items():
        os.environ.setdefault(name, value)
    from flows.pipeline import pipeline  # reads the settings above when imported

    return pipeline(config)
