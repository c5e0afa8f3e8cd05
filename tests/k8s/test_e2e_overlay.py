"""The overlay of `make e2e`, rendered here: what is wrong with it is found before a cluster is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hvkf.config_file import check_config, load_config
from tests.e2e.cluster import FLOW_IMAGE, POD_ENDPOINT
from tests.e2e.installation import DATABASE_IMAGE, write_overlay
from tests.k8s.overlays import K8S, of_kind, render
from tests.k8s.test_overlays import check

CONFIG = load_config(K8S / "overlays" / "kind" / "configs" / "default.yaml")


def rendered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, storage: bool
) -> list[dict[str, Any]]:
    monkeypatch.setenv(FLOW_IMAGE, "registry.test:5000/hvkf-flow:7")
    monkeypatch.setenv(POD_ENDPOINT, "http://10.0.0.9:8333")
    return render(write_overlay(folder, "hvkf-e2e-1", CONFIG, storage=storage))


@pytest.mark.parametrize("storage", [True, False])
def test_it_lies_in_its_own_namespace_and_runs_the_image_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: bool
) -> None:
    documents = rendered(tmp_path, monkeypatch, storage=storage)
    for document in documents:
        check(document)
    assert list(of_kind(documents, "Namespace")) == ["hvkf-e2e-1"]
    others = [found for found in documents if found["kind"] != "Namespace"]
    assert {found["metadata"]["namespace"] for found in others} == {"hvkf-e2e-1"}
    for binding in of_kind(documents, "RoleBinding").values():
        assert {subject["namespace"] for subject in binding["subjects"]} == {"hvkf-e2e-1"}
    spec = of_kind(documents, "Deployment")["hvkf-worker"]["spec"]["template"]["spec"]
    for container in [*spec["initContainers"], *spec["containers"]]:
        assert container["image"] == "registry.test:5000/hvkf-flow:7"
        assert {"name": "HVKF_FLOW_IMAGE", "value": container["image"]} in container["env"]
    (text,) = of_kind(documents, "ConfigMap")["hvkf-configs"]["data"].values()
    assert check_config(yaml.safe_load(text), "it") == CONFIG
    assert "hvkf-s3" not in of_kind(documents, "Service")
    (rule,) = of_kind(documents, "NetworkPolicy")["hvkf-e2e-s3"]["spec"]["egress"]
    assert rule == {"ports": [{"port": 8333}]}


def test_without_storage_nothing_claims_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = rendered(tmp_path, monkeypatch, storage=False)
    kinds = {found["kind"] for found in documents}
    assert not {"PersistentVolumeClaim", "StatefulSet"} & kinds
    (server,) = of_kind(documents, "Deployment")["hvkf-server"]["spec"]["template"]["spec"][
        "containers"
    ]
    names = [variable["name"] for variable in server["env"]]
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in names
    assert "PREFECT_UI_API_URL" in names


def test_another_image_of_the_database_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_IMAGE, "registry.test:5000/postgres:17")
    documents = rendered(tmp_path, monkeypatch, storage=True)
    spec = of_kind(documents, "StatefulSet")["hvkf-database"]["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"] == "registry.test:5000/postgres:17"
