"""Whether Prefect's server does what people expect of it, asked through its API."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType, WorkPoolStatus
from prefect.client.schemas.responses import DeploymentResponse

from hvkf.shown import counted

# The server looks for schedules that were switched on every few seconds, and at all every minute.
SCHEDULED_WITHIN = timedelta(minutes=2)
PAGE = 200


def examine_server(scheduled_within: timedelta = SCHEDULED_WITHIN) -> Iterator[str]:
    """Yield a line for each thing looked at; `lacks` begins those that need doing.

    Args:
        scheduled_within: How long a schedule is on before it must have planned runs.

    The server is that of PREFECT_API_URL.
    """
    with get_client(sync_client=True) as client:
        try:
            yield f"has     Prefect's server {client.api_version()} at {client.api_url}"
            yield from _pools(client)
            yield from _schedules(client, datetime.now(UTC) - scheduled_within)
        except httpx.HTTPError as error:
            yield (
                f"lacks   an answer of Prefect's server {client.api_url} ({error}): start it, or "
                "set PREFECT_API_URL to where it is"
            )


def _pools(client: SyncPrefectClient) -> Iterator[str]:
    for pool in client.read_work_pools():
        if pool.is_paused:
            yield f"without runs of the pool {pool.name}: it is paused in its page"
        elif pool.status == WorkPoolStatus.NOT_READY:
            yield (
                f"lacks   a worker of the pool {pool.name}: runs wait; start `make serve`, or see "
                "`kubectl -n hvkf logs deployment/hvkf-worker`"
            )
        else:
            yield f"has     a worker of the pool {pool.name}"


def _schedules(client: SyncPrefectClient, since: datetime) -> Iterator[str]:
    for deployment in _scheduled(client, since):
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
            ),
            limit=PAGE,
        )
        if runs:
            planned = counted(len(runs), "run")
            yield f"has     {planned} of {deployment.name} planned by its schedule"
        else:
            yield (
                f"lacks   a planned run of {deployment.name}, whose schedule is on: the services "
                "of Prefect's server fail; its log says why (serve/prefect/server.log, or "
                "`kubectl -n hvkf logs deployment/hvkf-server`)"
            )


def _scheduled(client: SyncPrefectClient, since: datetime) -> Iterator[DeploymentResponse]:
    """Yield the deployments with a schedule that was on before a moment, and is."""
    for deployment in client.read_deployments(limit=PAGE):
        is_on = any(
            schedule.active and schedule.updated is not None and schedule.updated < since
            for schedule in deployment.schedules
        )
        if is_on and not deployment.paused:
            yield deployment
