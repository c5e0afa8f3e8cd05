"""The Job of a flow's pod, made by the classes that Prefect's Kubernetes worker makes it with."""

import asyncio
import copy
import datetime
import uuid
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.deploy import filled_template

ROOT = Path(__file__).parents[2]
IMAGE = "hvkf-flow:1"
Document = dict[str, Any]
# Prefect's worker wants these two in the pod's specification, where the API has no such fields:
# it warns of them and leaves them out.
NO_FIELDS_OF_A_POD = ("parallelism", "completions")
WHEN = datetime.datetime(2026, 11, 29, tzinfo=datetime.UTC)


def deployments() -> list[Document]:
    """List the deployments of prefect.yaml."""
    found: list[Document] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def base_template() -> Document:
    """Return the template of k8s/base, as the first step of the worker's pod registers it."""
    values = {"HVKF_FLOW_IMAGE": IMAGE, "HVKF_NAMESPACE": "hvkf"}
    return filled_template((ROOT / "k8s" / "base" / "pool.json").read_text(), values)


def flow_job(template: Document, entry: Document, run_name: str = "tidy-crow") -> Document:
    """Return the Job that the worker creates for a run of a deployment.

    Raises:
        pydantic.ValidationError: the worker refuses what the template makes.
    """
    variables = copy.deepcopy(entry["work_pool"]["job_variables"])
    configuration = asyncio.run(_configuration(template, variables))
    flow_name = entry["entrypoint"].rpartition(":")[2]
    flow = Flow(id=uuid.uuid4(), created=WHEN, updated=WHEN, name=flow_name, labels={})
    run = FlowRun(id=uuid.uuid4(), created=WHEN, updated=WHEN, name=run_name, flow_id=flow.id)
    deployment = DeploymentResponse(
        id=uuid.uuid4(),
        created=WHEN,
        updated=WHEN,
        name=entry["name"],
        flow_id=flow.id,
        labels={},
    )
    pool = WorkPool(
        id=uuid.uuid4(),
        created=WHEN,
        updated=WHEN,
        name="hvkf",
        type="kubernetes",
        base_job_template=template,
        default_queue_id=uuid.uuid4(),
    )
    configuration.prepare_for_flow_run(run, deployment, flow, pool, "worker")
    manifest: Document = configuration.job_manifest
    return manifest


async def _configuration(
    template: Document, variables: Document
) -> KubernetesWorkerJobConfiguration:
    # Nothing in the template is looked up on the server, so that none is asked.
    async with PrefectClient("http://no-server.invalid/api") as client:
        found: KubernetesWorkerJobConfiguration = (
            await KubernetesWorkerJobConfiguration.from_template_and_values(
                template, variables, client=client
            )
        )
        return found


def as_stored(job: Document) -> Document:
    """Return a Job as the API keeps it: without the fields that a pod does not have."""
    stored = copy.deepcopy(job)
    for name in NO_FIELDS_OF_A_POD:
        del stored["spec"]["template"]["spec"][name]
    return stored
