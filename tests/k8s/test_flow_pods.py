"""Flow pods as Prefect's worker makes them: from each overlay's template, for each deployment."""

from typing import Any

import pytest
from kubernetes import client
from pydantic import ValidationError

from flows.deploy import filled_template
from tests.k8s.flow_pods import as_stored, base_template, deployments, flow_job
from tests.k8s.overlays import K8S, OVERLAYS, of_kind, render

DEPLOYMENTS = {entry["name"]: entry for entry in deployments()}
Document = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return render(K8S / "overlays" / str(request.param))


def pool_of(documents: list[Document]) -> Document:
    """Return an overlay's template as the worker's pod registers it."""
    spec = of_kind(documents, "Deployment")["hvkf-worker"]["spec"]["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "pool"]
    text = of_kind(documents, "ConfigMap")[volume["configMap"]["name"]]["data"]["pool.json"]
    # The pod's own namespace comes from the API, which puts it into the variable.
    values = {
        "HVKF_NAMESPACE": of_kind(documents, "Deployment")["hvkf-worker"]["metadata"]["namespace"]
    }
    for variable in spec["initContainers"][0]["env"]:
        values.setdefault(variable["name"], variable.get("value", ""))
    return filled_template(text, values)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_prefects_worker_makes_the_job_of_every_deployment_from_every_overlay(
    documents: list[Document], name: str
) -> None:
    job = flow_job(pool_of(documents), DEPLOYMENTS[name])
    client.V1Job.model_validate(as_stored(job))
    assert job["metadata"]["namespace"] == "hvkf"
    assert job["metadata"]["generateName"] == "tidy-crow-"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    spec = of_kind(documents, "Deployment")["hvkf-worker"]["spec"]["template"]["spec"]
    assert container["image"] == spec["containers"][0]["image"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    given = DEPLOYMENTS[name]["work_pool"]["job_variables"]["env"]
    assert given.items() <= environment.items()


def test_a_template_without_what_the_worker_wants_is_refused() -> None:
    template = base_template()
    del template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["completions"]
    with pytest.raises(ValidationError, match="missing required attributes"):
        flow_job(template, DEPLOYMENTS["train"])


def test_a_flow_pod_keeps_the_labels_that_network_policies_choose_it_by() -> None:
    job = flow_job(base_template(), DEPLOYMENTS["train"])
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "flow"
    assert labels["app.kubernetes.io/part-of"] == "hvkf"
    assert labels["app.kubernetes.io/name"] != "hvkf", "it would count as a stage's pod"


def test_a_flow_pod_that_is_evicted_is_started_again_by_prefect() -> None:
    job = flow_job(base_template(), DEPLOYMENTS["train"])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    behaviour = {"name": "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "value": "reschedule"}
    assert behaviour in container["env"]
    assert job["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("run_name", ["Train: keyframes/544p", "render märz", "-", "x" * 200])
def test_any_name_of_a_run_gives_a_job_a_name_that_the_api_takes(run_name: str) -> None:
    job = flow_job(base_template(), DEPLOYMENTS["train"], run_name)
    prefix = job["metadata"]["generateName"]
    assert prefix.endswith("-")
    assert len(prefix) <= 58  # five letters are put behind it, and labels take 63
    assert prefix.replace("-", "x").isalnum()
    assert prefix.isascii()
    assert prefix == prefix.lower()
