"""`hvkf doctor --cluster` says line by line what an API and an S3 service have and lack."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from hvkf.config import Config
from hvkf.config_file import check_config
from hvkf.doctor_cluster import examine_cluster
from hvkf.errors import BadInput
from hvkf.storage_s3 import S3Store
from tests.commands import run_command
from tests.s3_server import S3Service

NODE = {"metadata": {"name": "one"}, "spec": {}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}


class Api:
    """Answers of a Kubernetes API, which a test changes before it asks."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "/version/": (200, {"gitVersion": "v1.36.0", "major": "1", "minor": "36"}),
            "/api/v1/nodes": (200, {"apiVersion": "v1", "kind": "NodeList", "items": [NODE]}),
            "/api/v1/namespaces/hvkf/services/hvkf-gang": (200, {"spec": {"clusterIP": "None"}}),
        }
        self.forbidden: set[tuple[str, str]] = set()
        self.address = ""

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Answer a request; reviews are decided by `forbidden`."""
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            assert asked["namespace"] == "hvkf"
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            allowed = (asked["verb"], resource) not in self.forbidden
            return 201, {**body, "status": {"allowed": allowed}}
        return self.answers.get(path, (404, {"kind": "Status", "code": 404}))


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """Serve an API on a free port, and point KUBECONFIG at it."""
    served = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            code, answer = served.answer(self.path.partition("?")[0], body)
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.address = f"http://127.0.0.1:{server.server_address[1]}"
    kubeconfig = {
        "clusters": [{"name": "test", "cluster": {"server": served.address}}],
        "users": [{"name": "test", "user": {"token": "token"}}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "hvkf"}}
        ],
        "current-context": "test",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    # The client reads the variable when it is imported.
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
    )
    yield served
    server.shutdown()
    server.server_close()


def config_for(workspace: str, **train: Any) -> Config:
    jobs = {"cluster": {"image": "image"}, "train": {"executor": "kubernetes", **train}}
    return check_config({"workspace": workspace, "jobs": jobs}, "the test")


def test_a_cluster_that_has_everything_lacks_nothing(api: Api, s3: S3Service) -> None:
    url = s3.new_url()
    queue = "/apis/kueue.x-k8s.io/v1beta2/namespaces/hvkf/localqueues/gpu"
    api.answers[queue] = (200, {"metadata": {"name": "gpu"}})
    lines = list(examine_cluster(config_for(url, gpus_per_pod=8, queue="gpu")))
    assert not [line for line in lines if not line.startswith("has ")]
    text = "\n".join(lines)
    for said in ("v1.36.0", "create, get, list, watch, patch, delete jobs", "8 nvidia.com/gpu"):
        assert said in text
    for said in ("queue gpu", "hvkf-gang", "If-None-Match", "If-Match", "refuses wrong keys"):
        assert said in text
    assert list(S3Store(url).list("doctor")) == [], "nothing is left behind"


def test_a_context_that_names_no_namespace_means_the_one_that_is_installed(
    api: Api, s3: S3Service, tmp_path: Path
) -> None:
    """As kubectl users have it: the docs' command looks where k8s/ has put everything."""
    kubeconfig = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    del kubeconfig["contexts"][0]["context"]["namespace"]
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    lines = list(examine_cluster(config_for(s3.new_url())))
    assert "namespace hvkf" in lines[0]
    assert not [line for line in lines if line.startswith("lacks")]


def test_what_is_lacking_is_named_with_its_fix(api: Api, s3: S3Service) -> None:
    api.forbidden = {("patch", "jobs"), ("get", "pods/log")}
    del api.answers["/api/v1/namespaces/hvkf/services/hvkf-gang"]
    lines = list(examine_cluster(config_for(s3.new_url(), gpus_per_pod=16, queue="gpu")))
    lacking = [line for line in lines if line.startswith("lacks")]
    assert len(lacking) == 5
    assert 'the right to patch jobs in hvkf: add {apiGroups: ["batch"]' in lacking[0]
    assert "resources: [pods/log], verbs: [get]" in lacking[1]
    assert "a node with 16 nvidia.com/gpu (the largest has 8)" in lacking[2]
    assert "a LocalQueue gpu in hvkf" in lacking[3]
    assert "a headless Service hvkf-gang" in lacking[4]


def test_what_may_not_be_read_is_not_known_rather_than_lacking(api: Api, s3: S3Service) -> None:
    for path in ("/api/v1/nodes", "/api/v1/namespaces/hvkf/services/hvkf-gang"):
        api.answers[path] = (403, {"kind": "Status", "code": 403})
    lines = list(examine_cluster(config_for(s3.new_url(), gpus_per_pod=1)))
    assert sum(line.startswith("without the right to") for line in lines) == 2
    assert not [line for line in lines if line.startswith("lacks")]


def test_an_expired_token_is_told_and_storage_is_still_looked_at(api: Api, s3: S3Service) -> None:
    api.answers["/version/"] = (401, {"kind": "Status", "code": 401})
    lines = list(examine_cluster(config_for(s3.new_url())))
    assert "does not accept these credentials (401" in lines[0]
    assert any("S3 that takes objects" in line for line in lines)


def test_the_command_ends_with_a_fault_where_something_is_lacking(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metadata.csv").write_text("video_file,caption\na.mp4,a\n")
    mounted = [{"op": "add", "path": "/spec/volumes", "value": []}]
    config = config_for(str(tmp_path / "workspace"), pod_patch=mounted)
    ingest = config.ingest.model_copy(update={"metadata": str(tmp_path / "metadata.csv")})
    cache = config.cache.model_copy(update={"bucket_reso": ("64x64x5",)})
    config = config.model_copy(update={"ingest": ingest, "cache": cache})
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    run_command("doctor", "--cluster", "--config", str(file))
    assert "without S3: pods see the workspace" in capsys.readouterr().out
    api.forbidden = {("create", "jobs")}
    with pytest.raises(BadInput, match=r"What is lacking \(see above\): 1 thing\."):
        run_command("doctor", "--cluster", "--config", str(file))
