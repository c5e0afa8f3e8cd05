"""The `kind` overlay in a namespace of its own, with a bucket that is there already."""

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from hvkf.config import Config
from tests.e2e.cluster import FLOW_IMAGE, Namespace, s3_variables
from tests.e2e.prefect_api import PrefectApi
from tests.e2e.waiting import wait_for

K8S = Path(__file__).parents[2] / "k8s"
DATABASE_IMAGE = "HVKF_E2E_DATABASE_IMAGE"
START_S = 900.0
Document = dict[str, Any]


def has_storage(namespace: Namespace) -> bool:
    """Whether claims are filled by themselves on this cluster."""
    classes = json.loads(namespace.kubectl("get", "storageclasses", "--output", "json"))["items"]
    return any(
        (found["metadata"].get("annotations") or {}).get(
            "storageclass.kubernetes.io/is-default-class"
        )
        == "true"
        for found in classes
    )


def _removed(kind: str, name: str, version: str) -> Document:
    metadata = {"name": name}
    patch = {"$patch": "delete", "apiVersion": version, "kind": kind, "metadata": metadata}
    return {"patch": yaml.safe_dump(patch)}


def _image(name: str, full: str) -> Document:
    """Write kustomize's replacement of an image; its name may have a port in it."""
    new_name, colon, tag = full.rpartition(":")
    if not colon or "/" in tag:
        return {"name": name, "newName": full}
    return {"name": name, "newName": new_name, "newTag": tag}


def _without_database() -> list[Document]:
    """Let the server keep its data in its own pod: nothing outlives this test."""
    server = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "hvkf-server"},
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "server",
                            "env": [
                                {"$patch": "delete", "name": "DATABASE_PASSWORD"},
                                {
                                    "$patch": "delete",
                                    "name": "PREFECT_API_DATABASE_CONNECTION_URL",
                                },
                            ],
                        }
                    ]
                }
            }
        },
    }
    removed = [
        _removed("StatefulSet", "hvkf-database", "apps/v1"),
        _removed("Service", "hvkf-database", "v1"),
    ]
    return [*removed, {"patch": yaml.safe_dump(server)}]


def _open_port(port: int) -> Document:
    """Let the pods of stages reach S3 where it is on a port of its own."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "hvkf-e2e-s3"},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "hvkf"}},
            "policyTypes": ["Egress"],
            "egress": [{"ports": [{"port": port}]}],
        },
    }


def write_overlay(folder: Path, namespace: str, config: Config, *, storage: bool) -> Path:
    """Write an overlay on that of `kind`: other images, another bucket; return its folder."""
    shutil.copytree(K8S, folder / "k8s")
    overlay = folder / "k8s" / "overlays" / "e2e"
    overlay.mkdir()
    settings = config.model_dump(mode="json", exclude_unset=True)
    (overlay / "default.yaml").write_text(yaml.safe_dump(settings))
    patches = [
        _removed("StatefulSet", "hvkf-s3", "apps/v1"),
        _removed("Service", "hvkf-s3", "v1"),
        _removed("NetworkPolicy", "hvkf-s3", "networking.k8s.io/v1"),
        _removed("NetworkPolicy", "hvkf-job-to-s3", "networking.k8s.io/v1"),
    ]
    database = os.environ.get(DATABASE_IMAGE, "")
    if not storage:
        patches.append(_removed("PersistentVolumeClaim", "hvkf-cache", "v1"))
    if not storage or database == "sqlite":
        patches += _without_database()
    images = [_image("hvkf-flow", os.environ[FLOW_IMAGE])]
    if database not in ("", "sqlite"):
        images.append(_image("postgres", database))
    endpoint = urlsplit(s3_variables().get("AWS_ENDPOINT_URL", ""))
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    (overlay / "s3-port.yaml").write_text(yaml.safe_dump(_open_port(port)))
    kind = yaml.safe_load((K8S / "overlays" / "kind" / "kustomization.yaml").read_text())
    kustomization = {
        "apiVersion": kind["apiVersion"],
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": ["../kind", "s3-port.yaml"],
        "images": images,
        "patches": patches,
        "configMapGenerator": [
            {
                "name": "hvkf-configs",
                "behavior": "replace",
                "files": ["default.yaml"],
                "options": {"disableNameSuffixHash": True},
            }
        ],
        "replacements": kind["replacements"],  # flow pods run the image that the worker runs
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return overlay


@contextmanager
def installed(namespace: Namespace, config: Config) -> Iterator[PrefectApi]:
    """Install everything, as docs/cluster.md says; yield Prefect's API on this machine."""
    storage = has_storage(namespace)
    password = {"password": secrets.token_hex(24)}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hvkf-database"}}
    namespace.kubectl("apply", "-f", "-", document=json.dumps({**secret, "stringData": password}))
    with tempfile.TemporaryDirectory(prefix="hvkf-e2e-") as folder:
        overlay = write_overlay(Path(folder), namespace.name, config, storage=storage)
        namespace.kubectl("apply", "-k", str(overlay))
    for deployment in ("hvkf-server", "hvkf-worker"):
        command = ["rollout", "status", f"deployment/{deployment}", f"--timeout={START_S:.0f}s"]
        namespace.kubectl(*command)
    with forwarded(namespace, "service/hvkf-server", 4200) as port:
        api = PrefectApi(f"http://127.0.0.1:{port}/api")
        wait_for("the work pool's worker", lambda: _is_ready(api), 120)
        yield api


def _is_ready(api: PrefectApi) -> bool:
    ready: bool = api.ask("work_pools/hvkf")["status"] == "READY"
    return ready


@contextmanager
def forwarded(namespace: Namespace, target: str, port: int) -> Iterator[int]:
    """Forward a port of this machine to the cluster; yield it."""
    command = ["kubectl", "--namespace", namespace.name, "port-forward", target, f":{port}"]
    # A line for each connection comes: nobody would empty a pipe.
    with tempfile.NamedTemporaryFile("w+", prefix="hvkf-forward-") as log:
        forwarding = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:

            def own_port() -> int:
                said = Path(log.name).read_text()
                assert forwarding.poll() is None, f"kubectl port-forward: {said}"
                found = re.search(r"127\.0\.0\.1:(\d+) ->", said)
                return int(found[1]) if found else 0

            yield wait_for("the forwarded port", own_port, 60)
        finally:
            forwarding.terminate()
            forwarding.wait()
