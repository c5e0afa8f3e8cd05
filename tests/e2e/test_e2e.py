"""On a real cluster: the overlay is installed, flows are started as Prefect's pages start them."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvkf.config import Config
from hvkf.storage import open_store
from hvkf.verify import verify_workspace
from tests.e2e.cluster import GPU_IMAGE, Namespace, missing, new_namespace
from tests.e2e.installation import has_storage, installed
from tests.e2e.prefect_api import PrefectApi
from tests.e2e.waiting import wait_for
from tests.test_chain_s3 import lay_out

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"no cluster to test on: lacks {missing()}"),
    pytest.mark.timeout(3600),
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
# Prefect's runner asks every ten seconds whether its run is to be cancelled.
FLOW_CANCEL_LIMIT_S = 60.0
LONG_STEPS = 100_000


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with new_namespace() as made:
        yield made


def config_in_bucket(namespace: Namespace, folder: Path) -> Config:
    """Lay sources and checkpoint out in the bucket; most pods take a GPU."""
    url = f"s3://{os.environ['HVKF_E2E_BUCKET']}/hvkf-e2e/{uuid.uuid4().hex[:12]}"
    config = lay_out(folder, url, num_videos=6)
    jobs: dict[str, dict[str, Any]] = {
        stage: {**POD, "workers": 2} for stage in ("ingest", "cache", "encode", "render")
    }
    jobs["encode"]["gpus_per_pod"] = 1
    jobs["train"] = {**POD, "nodes": 2, "gpus_per_pod": 1}
    jobs["evaluate"] = {**POD, "gpus_per_pod": 1}
    cluster = {
        "image": os.environ[GPU_IMAGE],
        "namespace": namespace.name,
        "s3_secret": "hvkf-s3",
        "cache_claim": "hvkf-cache" if has_storage(namespace) else None,
    }
    settings = config.model_dump(exclude_unset=True)
    return Config.model_validate({**settings, "jobs": {**jobs, "cluster": cluster}})


@pytest.fixture(scope="module")
def deployed(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The settings that are installed: what the forms' `default` means."""
    return config_in_bucket(namespace, tmp_path_factory.mktemp("deployed"))


@pytest.fixture(scope="module")
def prefect(namespace: Namespace, deployed: Config) -> Iterator[PrefectApi]:
    with installed(namespace, deployed) as api:
        yield api


def pods_of(namespace: Namespace, run: str) -> list[str]:
    """List the running pods of a flow run."""
    pods = namespace.list("pods", f"prefect.io/flow-run-id={run}")
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]


def running_pod(namespace: Namespace, stage: str) -> dict[str, str]:
    """Wait for a running pod of a stage; return its name and node."""

    def look() -> dict[str, str] | None:
        for pod in namespace.list("pods", f"hvkf/stage={stage}"):
            if pod["status"]["phase"] == "Running":
                return {"name": pod["metadata"]["name"], "node": pod["spec"]["nodeName"]}
        return None

    found: dict[str, str] = wait_for(f"a running pod of {stage}", look, 600)
    return found


def unfinished_jobs(namespace: Namespace, stage: str) -> list[str]:
    """List a stage's jobs that neither have ended nor were told to."""
    return [
        job["metadata"]["name"]
        for job in namespace.list("jobs", f"hvkf/stage={stage}")
        if "deletionTimestamp" not in job["metadata"] and job["status"].get("active")
    ]


def test_the_pipeline_runs_from_its_form_to_the_videos(
    prefect: PrefectApi, deployed: Config
) -> None:
    run = prefect.start("pipeline/pipeline")
    prefect.wait(run, "COMPLETED")
    store = open_store(deployed.workspace)
    assert [path for path in store.list("renders") if path.endswith(".mp4")]
    found = verify_workspace(store)
    assert (found.num_objects > 0, found.faults) == (True, [])
    stages = ("ingest", "cache", "encode", "train", "evaluate", "render")
    assert {f"{stage}-summary" for stage in stages} <= prefect.artifacts(run)


def test_a_night_trains_and_is_judged_and_the_next_has_nothing_to_do(
    prefect: PrefectApi, deployed: Config
) -> None:
    state = prefect.wait(prefect.start("nightly/nightly"), "COMPLETED")
    assert state["name"] in ("Promoted", "Kept"), state
    state = prefect.wait(prefect.start("nightly/nightly"), "COMPLETED")
    assert state["name"] == "Skipped", state


def test_a_cancelled_training_saves_and_a_retry_goes_on(
    prefect: PrefectApi, namespace: Namespace, deployed: Config
) -> None:
    run = prefect.start("train/train", run_id="cancelled", max_train_steps=LONG_STEPS)
    running_pod(namespace, "train")
    prefect.wait(run, "RUNNING")
    wait_for("progress", lambda: "train-progress" in prefect.artifacts(run), 300)
    prefect.cancel(run)
    prefect.wait(run, "CANCELLED", FLOW_CANCEL_LIMIT_S)
    wait_for("the job's end", lambda: not unfinished_jobs(namespace, "train"), 120)
    wait_for("its pods to be gone", lambda: not namespace.list("pods", "hvkf/stage=train"), 120)

    prefect.retry(run)
    prefect.wait(run, "RUNNING", 300)
    running_pod(namespace, "train")
    prefect.cancel(run)
    prefect.wait(run, "CANCELLED", FLOW_CANCEL_LIMIT_S)


@pytest.mark.parametrize("how", ["told to stop", "killed"])
def test_a_run_whose_flow_pod_was_deleted_goes_on(
    prefect: PrefectApi, namespace: Namespace, deployed: Config, how: str
) -> None:
    """A pod that hears of it hands its run back to Prefect; one that does not is retried."""
    run_id = how.replace(" ", "-")
    run = prefect.start("train/train", run_id=run_id, max_train_steps=200)
    running_pod(namespace, "train")
    (pod,) = wait_for("the flow's pod", lambda: pods_of(namespace, run))
    if how == "killed":
        namespace.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        prefect.wait(run, "CRASHED", 300)
        prefect.retry(run)
    else:
        namespace.kubectl("delete", "pod", pod, "--wait=false")
    wait_for("another pod of the flow", lambda: set(pods_of(namespace, run)) - {pod}, 300)
    prefect.wait(run, "COMPLETED")
    assert open_store(deployed.workspace).exists(f"runs/{run_id}/result.json")


@pytest.fixture
def config(namespace: Namespace, prefect: PrefectApi, tmp_path: Path) -> Config:
    """A workspace of this test's own, used from this machine."""
    return config_in_bucket(namespace, tmp_path)


def command(stage: str, config: Config, folder: Path) -> list[str]:
    """Write the command of a stage, which waits for its job on the cluster."""
    file = folder / "config.yaml"
    file.write_text(config.model_dump_json())
    return [sys.executable, "-m", "hvkf.cli", stage, "--config", str(file)]


def start(stage: str, config: Config, folder: Path) -> "subprocess.Popen[str]":
    """Start a stage's command."""
    return subprocess.Popen(
        command(stage, config, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(started: "subprocess.Popen[str]") -> None:
    """Wait for a stage's command to do its work."""
    said, _ = started.communicate()
    assert started.returncode == 0, said[-3000:]


def test_the_doctor_finds_what_the_installation_brought(config: Config, tmp_path: Path) -> None:
    doctor = [*command("doctor", config, tmp_path), "--cluster"]
    ended = subprocess.run(doctor, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_the_chain_survives_a_deleted_pod_a_drained_node_and_a_cancelled_command(
    namespace: Namespace, config: Config, tmp_path: Path
) -> None:
    finish(start("ingest", config, tmp_path))
    finish(start("cache", config, tmp_path))

    encode = start("encode", config, tmp_path)
    pod = running_pod(namespace, "encode")
    namespace.kubectl("delete", "pod", pod["name"], "--wait=false")
    finish(encode)

    train = start("train", config, tmp_path)
    running_pod(namespace, "train")
    train.send_signal(signal.SIGTERM)
    wait_for(
        "the cancelled job to be told to end",
        lambda: not unfinished_jobs(namespace, "train"),
        limit_s=CANCEL_LIMIT_S,
    )
    train.communicate()
    wait_for("its pods to be gone", lambda: not namespace.list("pods", "hvkf/stage=train"), 120)
    finish(start("train", config, tmp_path))
    finish(start("evaluate", config, tmp_path))

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
    finish(render)

    store = open_store(config.workspace)
    found = verify_workspace(store)
    assert (found.num_objects > 0, found.faults) == (True, [])
    assert [path for path in store.list("renders") if path.endswith(".mp4")]
