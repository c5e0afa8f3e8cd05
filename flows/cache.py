"""The flow of the cache stage."""

from typing import Any

from prefect import State, flow

from flows.forms import CacheForm
from flows.stage import run_form
from hvkf.records import Summary


@flow(name="cache", persist_result=False, validate_parameters=False)
def cache(request: CacheForm) -> Summary | State[Any]:
    """Reads the catalog and its videos; writes resized frames as MDS shards (scenes/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_form("cache", CacheForm, request)
