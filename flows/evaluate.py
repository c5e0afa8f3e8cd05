"""The flow of the evaluate stage."""

from prefect import flow

from flows.stage import run_stage
from hvkf.config import Config
from hvkf.records import Summary


@flow(name="evaluate")
def evaluate(config: Config) -> Summary:
    """Reads a run's LoRA and held-out clips; writes metrics and a report (evals/).

    Args:
        config: All settings; the stage reads its own sections.
    """
    return run_stage("evaluate", config)
