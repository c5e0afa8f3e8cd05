"""The chain on a real cluster: a pod deleted, a run cancelled, a node drained."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvkf.config import Config
from hvkf.storage import open_store
from hvkf.verify import verify_workspace
from tests.e2e.cluster import Namespace, missing, new_namespace, wait_for
from tests.test_chain_s3 import lay_out

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"no cluster to test on: lacks {missing()}"),
    pytest.mark.timeout(1800),
]
# Small enough that several fit a node of a test cluster.
POD = {
    "executor": "kubernetes",
    "cpu": "250m",
    "memory": "3Gi",
    "shm_size": "128Mi",
    "ephemeral_storage": "2Gi",
    "threads": 1,
    "start_timeout_s": 600,
    "grace_s": 30,
    "env": {"HF_HUB_OFFLINE": "1"},
}
CANCEL_LIMIT_S = 10.0


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    with new_namespace(tmp_path_factory.mktemp("manifests")) as made:
        yield made


@pytest.fixture
def config(namespace: Namespace, tmp_path: Path) -> Config:
    """Lay sources and checkpoint out in the bucket; most pods take a GPU."""
    url = f"s3://{os.environ['HVKF_E2E_BUCKET']}/hvkf-e2e/{uuid.uuid4().hex[:12]}"
    config = lay_out(tmp_path, url, num_videos=6)
    jobs = {stage: {**POD, "workers": 2} for stage in ("cache", "encode", "render")}
    jobs["encode"]["gpus_per_pod"] = 1
    jobs["train"] = {**POD, "nodes": 2, "gpus_per_pod": 1}
    jobs["evaluate"] = {**POD, "gpus_per_pod": 1}
    cluster = {
        "image": os.environ["HVKF_E2E_IMAGE"],
        "namespace": namespace.name,
        "s3_secret": "hvkf-s3",
    }
    settings = config.model_dump(exclude_unset=True)
    return Config.model_validate({**settings, "jobs": {**jobs, "cluster": cluster}})


def start(stage: str, config: Config, folder: Path) -> "subprocess.Popen[str]":
    """Start a stage's command, which waits for its job on the cluster."""
    file = folder / "config.yaml"
    file.write_text(config.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", "hvkf.cli", stage, "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(stage: str, config: Config, folder: Path) -> None:
    """Run a stage to its end."""
    said, _ = (started := start(stage, config, folder)).communicate()
    assert started.returncode == 0, said[-3000:]


def running_pod(namespace: Namespace, stage: str) -> dict[str, str]:
    """Wait for a running pod of a stage; return its name and node."""

    def look() -> dict[str, str] | None:
        for pod in namespace.list("pods", f"hvkf/stage={stage}"):
            if pod["status"]["phase"] == "Running":
                return {"name": pod["metadata"]["name"], "node": pod["spec"]["nodeName"]}
        return None

    found: dict[str, str] = wait_for(f"a running pod of {stage}", look)
    return found


def test_the_doctor_finds_what_the_installation_brought(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "hvkf.cli", "doctor", "--cluster", "--config", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_the_chain_survives_a_deleted_pod_a_drained_node_and_a_cancelled_run(
    namespace: Namespace, config: Config, tmp_path: Path
) -> None:
    finish("ingest", config, tmp_path)
    finish("cache", config, tmp_path)

    encode = start("encode", config, tmp_path)
    pod = running_pod(namespace, "encode")
    namespace.kubectl("delete", "pod", pod["name"], "--wait=false")
    said, _ = encode.communicate()
    assert encode.returncode == 0, said[-3000:]

    train = start("train", config, tmp_path)
    running_pod(namespace, "train")
    train.send_signal(signal.SIGTERM)
    wait_for(
        "the cancelled job to be told to end",
        lambda: all(
            "deletionTimestamp" in job["metadata"]
            for job in namespace.list("jobs", "hvkf/stage=train")
        ),
        limit_s=CANCEL_LIMIT_S,
    )
    train.communicate()
    wait_for("its pods to be gone", lambda: not namespace.list("pods", "hvkf/stage=train"), 120)
    finish("train", config, tmp_path)
    finish("evaluate", config, tmp_path)

    render = start("render", config, tmp_path)
    node = running_pod(namespace, "render")["node"]
    try:
        # Of this node only these pods: on a cluster of one node nothing else may go.
        namespace.kubectl(
            *("drain", node, "--pod-selector=hvkf/stage=render", "--ignore-daemonsets"),
            *("--delete-emptydir-data", "--force", "--timeout=120s"),
        )
    finally:
        namespace.kubectl("uncordon", node)
    said, _ = render.communicate()
    assert render.returncode == 0, said[-3000:]

    store = open_store(config.workspace)
    count, faults = verify_workspace(store)
    assert (count > 0, faults) == (True, [])
    assert [path for path in store.list("renders") if path.endswith(".mp4")]
