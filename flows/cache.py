"""The flow of the cache stage."""

from prefect import flow

from flows.forms import CacheForm
from flows.stage import run_stage
from hvkf.records import Summary


@flow(name="cache", persist_result=False)
def cache(request: CacheForm) -> Summary:
    """Reads the catalog and its videos; writes resized frames as MDS shards (scenes/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_stage("cache", request.to_config())
