"""The flow of the cache stage."""

from prefect import flow

from flows.stage import run_stage
from hvkf.config import Config
from hvkf.records import Summary


@flow(name="cache")
def cache(config: Config) -> Summary:
    """Reads the catalog and its videos; writes resized frames as MDS shards (scenes/).

    Args:
        config: All settings; the stage reads its own sections.
    """
    return run_stage("cache", config)
