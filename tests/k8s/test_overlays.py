"""The overlays, rendered by kustomize: what a cluster accepts, and what its pods may do."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client
from kubernetes.utils.quantity import parse_quantity
from pydantic import ValidationError

from hvkf.config import Config
from hvkf.config_file import load_config
from hvkf.jobs.manifest import labels_of
from hvkf.jobs.spec import JobSpec
from hvkf.settings.jobs import STAGES, StageJobs
from tests.k8s.flow_pods import IMAGE, as_stored, base_template, deployments, flow_job
from tests.k8s.overlays import K8S, of_kind, render

OVERLAYS = ("kind", "cloud")
Document = dict[str, Any]
# Kinds that are not the API's own come with Kueue.
FOREIGN = "kueue.x-k8s.io/"


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def documents(overlay: str) -> list[Document]:
    return render(K8S / "overlays" / overlay)


@pytest.fixture
def config(overlay: str) -> Config:
    return load_config(K8S / "overlays" / overlay / "configs" / "default.yaml")


def check(document: Document) -> None:
    """Validate a document against the API's own schema; an unknown field is refused."""
    group = document["apiVersion"].rpartition("/")[2]
    model = getattr(client, f"{group.capitalize()}{document['kind']}")
    model.model_validate(document)


def pod_specs(documents: list[Document]) -> Iterator[tuple[str, Document, Document]]:
    """Yield the name, metadata and spec of each pod template, that of flow pods among them."""
    for found in documents:
        if found["kind"] in ("Deployment", "StatefulSet"):
            template = found["spec"]["template"]
            yield found["metadata"]["name"], template["metadata"], template["spec"]
        if found["kind"] == "CronJob":
            template = found["spec"]["jobTemplate"]["spec"]["template"]
            yield found["metadata"]["name"], template["metadata"], template["spec"]
    template = flow_pods_job()["spec"]["template"]
    yield "flow", template["metadata"], template["spec"]


def flow_pods_job() -> Document:
    """Make a flow pod's job as Prefect's worker does."""
    return as_stored(flow_job(base_template(), deployments()[0]))


def test_every_document_is_one_of_the_api(documents: list[Document]) -> None:
    for document in documents:
        check(document)
    check(flow_pods_job())
    document = json.loads(json.dumps(of_kind(documents, "Deployment")["hvkf-server"]))
    document["spec"]["template"]["spec"]["container"] = []
    with pytest.raises(ValidationError):
        check(document)


def test_flow_pods_run_the_workers_image_which_no_form_can_change(
    documents: list[Document],
) -> None:
    assert flow_pods_job()["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    assert "image" not in base_template()["variables"]["properties"]
    spec = of_kind(documents, "Deployment")["hvkf-worker"]["spec"]["template"]["spec"]
    (worker,) = spec["containers"]
    for container in [*spec["initContainers"], worker]:
        assert container["image"] == worker["image"]
        assert {"name": "HVKF_FLOW_IMAGE", "value": worker["image"]} in container["env"]


def test_prefects_server_takes_the_pool() -> None:
    from prefect.server.schemas.actions import WorkPoolCreate

    WorkPoolCreate(name="hvkf", type="kubernetes", base_job_template=base_template())


def test_everything_lies_in_the_namespace_which_enforces_the_restricted_standard(
    documents: list[Document],
) -> None:
    (namespace,) = of_kind(documents, "Namespace").values()
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [found for found in documents if found is not namespace]
    assert {found["metadata"]["namespace"] for found in others} == {"hvkf"}


def test_every_pod_keeps_the_restricted_standard(documents: list[Document]) -> None:
    for name, _, spec in pod_specs(documents):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= {"emptyDir", "configMap", "persistentVolumeClaim"}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            locked = container["securityContext"]
            assert locked["allowPrivilegeEscalation"] is False
            assert locked["capabilities"] == {"drop": ["ALL"]}
            assert locked["readOnlyRootFilesystem"] is True
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"])


def test_flows_may_manage_jobs_and_read_pods_and_nothing_else(documents: list[Document]) -> None:
    role = of_kind(documents, "Role")["hvkf-flow"]
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    readable = {"get", "list", "watch"}
    assert granted == {
        ("batch", "jobs"): readable | {"create", "patch", "delete"},
        **{("", resource): readable for resource in ("pods", "pods/log", "events")},
    }
    assert not of_kind(documents, "ClusterRole")


def test_gpu_pods_have_no_role_and_no_token(documents: list[Document], config: Config) -> None:
    name = config.jobs.cluster.service_account
    account = of_kind(documents, "ServiceAccount")[name]
    assert account["automountServiceAccountToken"] is False
    for binding in of_kind(documents, "RoleBinding").values():
        assert name not in [subject["name"] for subject in binding["subjects"]]


def test_every_name_that_a_pod_or_binding_refers_to_is_there(documents: list[Document]) -> None:
    there = {kind: set(of_kind(documents, kind)) for kind in ("ConfigMap", "ServiceAccount")}
    for name, _, spec in pod_specs(documents):
        assert spec["serviceAccountName"] in there["ServiceAccount"], name
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in there["ConfigMap"], name
        for container in spec["containers"]:
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in there["ConfigMap"], name
    for binding in of_kind(documents, "RoleBinding").values():
        assert binding["roleRef"]["name"] in of_kind(documents, "Role")
        assert {subject["name"] for subject in binding["subjects"]} <= there["ServiceAccount"]


def test_no_password_lies_in_a_manifest(documents: list[Document]) -> None:
    assert not of_kind(documents, "Secret")
    for _, _, spec in pod_specs(documents):
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "KEY")):
                    assert "secretKeyRef" in variable["valueFrom"]


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """Say whether a label selector of equalities chooses these labels."""
    return dict(selector).items() <= labels.items()


def test_services_choose_pods_that_there_are(documents: list[Document], config: Config) -> None:
    labels = [dict(metadata["labels"]) for _, metadata, _ in pod_specs(documents)]
    job = JobSpec.model_validate(
        {
            "stage": "train",
            "workspace": config.workspace,
            "plan": "0",
            "parts": (0,),
            "attempt": 1,
            "jobs": config.jobs.train,
            "cluster": config.jobs.cluster,
        }
    )
    gang = of_kind(documents, "Service")[config.jobs.cluster.gang_service]["spec"]
    assert matches(gang["selector"], labels_of(job))
    assert gang["clusterIP"] == "None"
    assert gang["publishNotReadyAddresses"] is True
    for name, service in of_kind(documents, "Service").items():
        selector = service["spec"]["selector"]
        assert any(matches(selector, found) for found in [*labels, labels_of(job)]), name


def test_the_deployed_settings_run_every_stage_on_the_cluster(
    documents: list[Document], config: Config
) -> None:
    assert {getattr(config.jobs, stage).executor for stage in STAGES} == {"kubernetes"}
    claim = config.jobs.cluster.cache_claim
    assert claim in of_kind(documents, "PersistentVolumeClaim")


def asked(containers: list[Document]) -> tuple[float, float]:
    """Sum what containers ask for: CPUs, and GiB of memory."""
    requests = [container["resources"]["requests"] for container in containers]
    cpus = sum(float(parse_quantity(request["cpu"])) for request in requests)
    return cpus, sum(float(parse_quantity(request["memory"])) for request in requests) / 2**30


def test_what_the_kind_overlay_asks_for_fits_a_laptop_and_is_told() -> None:
    documents = render(K8S / "overlays" / "kind")
    config = load_config(K8S / "overlays" / "kind" / "configs" / "default.yaml")
    always = [spec["containers"][0] for _, _, spec in pod_specs(documents)]  # a flow's among them
    cpus, memory_gib = asked(always)
    pods = []
    for stage in STAGES:
        jobs: StageJobs = getattr(config.jobs, stage)
        num_pods = jobs.nodes if stage == "train" else jobs.workers
        request = {"cpu": jobs.cpu, "memory": jobs.memory}
        pods.append(asked([{"resources": {"requests": request}}] * num_pods))
    cpus, memory_gib = cpus + max(x for x, _ in pods), memory_gib + max(y for _, y in pods)
    assert cpus <= 3.05 / 2
    assert memory_gib <= 10.5 / 2
    told = f"asks for {cpus:.2g} CPUs and {memory_gib:.2g} GiB"
    assert told in (K8S.parent / "docs" / "cluster.md").read_text(), told


def test_prefect_is_behind_tls_and_a_sign_in_in_the_cloud() -> None:
    documents = render(K8S / "overlays" / "cloud")
    (ingress,) = of_kind(documents, "Ingress").values()
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"]["name"] == "hvkf-sign-in"
    assert ingress["spec"]["tls"][0]["hosts"] == [ingress["spec"]["rules"][0]["host"]]
    environment = of_kind(documents, "Deployment")["hvkf-server"]["spec"]["template"]["spec"][
        "containers"
    ][0]["env"]
    host = ingress["spec"]["rules"][0]["host"]
    assert {"name": "PREFECT_UI_API_URL", "value": f"https://{host}/api"} in environment


def test_queues_are_an_addition_to_the_cloud() -> None:
    documents = render(K8S / "overlays" / "cloud-queues")
    foreign = [found for found in documents if found["apiVersion"].startswith(FOREIGN)]
    flavors = {found["metadata"]["name"] for found in foreign if found["kind"] == "ResourceFlavor"}
    (queue,) = [found for found in foreign if found["kind"] == "ClusterQueue"]
    (local,) = [found for found in foreign if found["kind"] == "LocalQueue"]
    for group in queue["spec"]["resourceGroups"]:
        assert {flavor["name"] for flavor in group["flavors"]} == flavors
        for flavor in group["flavors"]:
            covered = [resource["name"] for resource in flavor["resources"]]
            assert covered == group["coveredResources"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert local["metadata"]["namespace"] == "hvkf"
    assert "namespace" not in queue["metadata"], "a ClusterQueue lies in none"
    for found in documents:
        if found not in foreign:
            check(found)
