"""Flows started through Prefect's API with the flow image's packages, their jobs on a cluster.

What `make e2e` does on a real cluster, as far as one machine can: flow pods are processes of a
worker, the pods of stages are processes of the small cluster with the GPU image's packages.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.server import CLIENT_PASSWORD
from hvkf.config import Config
from hvkf.storage import open_store
from hvkf.verify import verify_workspace
from tests.e2e.prefect_api import PrefectApi
from tests.e2e.waiting import wait_for
from tests.flows.house import House, serving
from tests.images.flow_environment import ROOT, flow_environment, flow_python
from tests.jobs.cluster_objects import Object
from tests.jobs.running_cluster import RunningCluster, running_cluster, use_kubeconfig
from tests.jobs.small_cluster import NAMESPACE, SmallCluster
from tests.s3_server import S3Service
from tests.test_chain_s3 import lay_out

pytestmark = [pytest.mark.lengthy, pytest.mark.slow, pytest.mark.timeout(2400)]

STAGES = ("ingest", "cache", "encode", "train", "evaluate", "render")
CANCEL_LIMIT_S = 60.0
LONG_STEPS = 100_000


class Installation:
    """A server, a worker and a cluster."""

    def __init__(self, house: House, cluster: RunningCluster, config: Config) -> None:
        self.house, self.cluster, self.config = house, cluster, config
        self.prefect = PrefectApi(f"{house.address}/api", house.password())

    def train_for_long(self, run_id: str) -> str:
        """Start a training that will not end by itself, and wait until its pods train."""
        run = self.prefect.start("train/train", run_id=run_id, max_train_steps=LONG_STEPS)
        wait_for("progress", lambda: " steps" in self.house.progress(run), 300)
        return run

    def jobs(self, stage: str) -> list[Object]:
        """List a stage's jobs that have not ended."""
        return [
            job
            for job in self.cluster.jobs()
            if job["metadata"]["labels"].get("hvkf/stage") == stage
            and not job["metadata"].get("deletionTimestamp")
            and not job["status"].get("conditions")
        ]


@pytest.fixture
def installation(
    s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Installation]:
    config = lay_out(tmp_path, s3.new_url())
    values = config.model_dump(mode="json", exclude_unset=True)
    pod = {"executor": "kubernetes", "workers": 1, "threads": 1}
    values["jobs"] = {stage: dict(pod) for stage in STAGES[1:]}
    values["jobs"]["cluster"] = {"image": "hvkf-gpu:local"}
    config = Config.model_validate(values)
    with running_cluster(tmp_path) as cluster:
        use_kubeconfig(tmp_path, cluster.address, monkeypatch)
        environment = flow_environment(tmp_path, XDG_CACHE_HOME=str(tmp_path / "flow-cache"))
        with serving(tmp_path, config, str(flow_python()), environment) as house:
            yield Installation(house, cluster, config)


@contextlib.contextmanager
def kubernetes_worker(installation: Installation) -> Iterator[None]:
    """Deploy to a Kubernetes pool, and run its worker, as the worker's pod in the cluster does."""
    folder = installation.house.folder
    image = flow_environment(folder, HVKF_CONFIGS=str(folder / "configs"), OMP_NUM_THREADS="1")
    image["PATH"] = f"{flow_python().parent}{os.pathsep}{image['PATH']}"
    installation.cluster.images["hvkf-flow:local"] = image
    environment = {
        **image,
        "PREFECT_API_URL": installation.prefect.address,
        CLIENT_PASSWORD: installation.prefect.password,
        "PREFECT_HOME": str(folder / "worker-home"),
        # It asks the API which kinds of objects there are, which the small cluster cannot say.
        "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",
        "HVKF_FLOW_IMAGE": "hvkf-flow:local",
        "HVKF_NAMESPACE": NAMESPACE,
    }
    template = ROOT / "k8s" / "base" / "pool.json"
    deploy = ["-m", "flows.deploy", "--pool", "hvkf", "--template", str(template)]
    subprocess.run([flow_python(), *deploy], env=environment, cwd=ROOT, check=True)
    command = ["prefect", "worker", "start", "--pool=hvkf", "--type=kubernetes"]
    with (folder / "kubernetes-worker.log").open("w") as log:
        worker = subprocess.Popen(
            [flow_python(), "-m", *command],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(60)


def flow_pods(installation: Installation, run: str) -> list[str]:
    """List the running pods of a flow run."""

    def look(seen: SmallCluster) -> list[str]:
        return [
            pod["metadata"]["name"]
            for pod in seen.objects.all("pods")
            if pod["metadata"]["labels"].get("prefect.io/flow-run-id") == run
            and pod["metadata"]["name"] in seen.pods.running
            and not pod["metadata"].get("deletionTimestamp")
        ]

    return installation.cluster.do(look)


def test_prefects_kubernetes_worker_starts_flow_pods_that_may_be_deleted(
    installation: Installation,
) -> None:
    prefect = installation.prefect
    with kubernetes_worker(installation):
        for stage in STAGES[:3]:
            prefect.wait(prefect.start(f"{stage}/{stage}"), "COMPLETED")
        pods = [pod for pod in installation.cluster.pods() if "prefect-job" in str(pod["spec"])]
        assert len(pods) == 3
        assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods} == {
            "flow"
        }

        run = installation.train_for_long("moved")
        (pod,) = flow_pods(installation, run)
        (job,) = installation.jobs("train")
        installation.cluster.do(lambda seen: seen.pods.delete(pod))
        wait_for("another pod", lambda: set(flow_pods(installation, run)) - {pod}, 180)
        wait_for(
            "the job to be adopted",
            lambda: any("is there already" in line for line in installation.house.logs(run)),
            180,
        )
        (found,) = installation.jobs("train")
        assert found["metadata"]["uid"] == job["metadata"]["uid"], "GPUs are not given up for it"
        prefect.cancel(run)
        prefect.wait(run, "CANCELLED", CANCEL_LIMIT_S)
        wait_for("the job's end", lambda: not installation.jobs("train"), 60)


def test_pipeline_and_nights_run_from_their_forms(installation: Installation) -> None:
    prefect, workspace = installation.prefect, installation.config.workspace
    run = prefect.start("pipeline/pipeline")
    prefect.wait(run, "COMPLETED")
    store = open_store(workspace)
    assert [path for path in store.list("renders") if path.endswith(".mp4")]
    assert verify_workspace(store)[1] == []
    assert {f"{stage}-summary" for stage in STAGES} <= prefect.artifacts(run)
    stages = [job["metadata"]["labels"]["hvkf/stage"] for job in installation.cluster.jobs()]
    assert tuple(dict.fromkeys(stages)) == STAGES, "every stage's work is pods'"
    check_how_it_is_shown(prefect, run)

    state = prefect.wait(prefect.start("nightly/nightly"), "COMPLETED")
    assert state["name"] in ("Promoted", "Kept"), state
    assert state["data"] is None, "no result is kept where a retry's pod would not find it"
    state = prefect.wait(prefect.start("nightly/nightly"), "COMPLETED")
    assert state["name"] == "Skipped", state


def check_how_it_is_shown(prefect: PrefectApi, run: str) -> None:
    """Look at what people see of a pipeline's run."""
    shown = prefect.ask(f"flow_runs/{run}")
    assert shown["name"] == "pipeline default"
    assert {"pipeline", "dataset: default", "run: test"} <= set(shown["tags"])
    below = [prefect.ask(f"flow_runs/{found}") for found in prefect.below(run)]
    names = {found["name"] for found in below}
    assert names == {
        *("ingest default", "cache default", "encode default"),
        *("train test", "evaluate test", "render pairs.csv"),
    }
    for found in below:
        assert len(json.dumps(found["parameters"])) < 200, "parameters are for people to read"
        flow = prefect.ask(f"flows/{found['flow_id']}")["name"]
        assert found["name"].startswith(f"{flow} ")
    wanted = {"flow_runs": {"id": {"any_": [run]}}}
    (summary,) = prefect.ask("artifacts/filter", wanted)
    assert summary["key"] == "pipeline-summary"
    for found in below:
        assert f"/runs/flow-run/{found['id']}" in summary["data"]
    assert "report: `s3://" in summary["data"]


def test_a_run_that_fails_says_why_in_its_first_line(installation: Installation) -> None:
    prefect = installation.prefect
    run = prefect.start("train/train")
    message = prefect.wait(run, "FAILED")["message"]
    assert message.startswith("The workspace "), "no exception's name, no traceback"
    assert "run `hvkf " in message
    assert not [line for line in installation.house.logs(run) if "Traceback" in line]
    run = prefect.start("pipeline/pipeline", metadata="s3://absent-bucket/absent.csv")
    message = prefect.wait(run, "FAILED")["message"]
    assert "absent" in message
    assert message == prefect.state(prefect.below(run)[0])["message"]
    wanted = {"flow_runs": {"id": {"any_": [run]}}}
    (summary,) = prefect.ask("artifacts/filter", wanted)
    assert ": failed" in summary["data"]
    assert "Not run: cache, encode, train, evaluate" in summary["data"]


def test_a_training_is_cancelled_retried_and_outlives_its_flows_process(
    installation: Installation,
) -> None:
    prefect, store = installation.prefect, open_store(installation.config.workspace)
    for stage in STAGES[:3]:
        prefect.wait(prefect.start(f"{stage}/{stage}"), "COMPLETED")
    run = installation.train_for_long("cancelled")
    prefect.cancel(run)
    prefect.wait(run, "CANCELLED", CANCEL_LIMIT_S)
    wait_for("the job's end", lambda: not installation.jobs("train"), 60)
    saved = [path for path in store.list("runs/cancelled") if path.endswith("commit.json")]
    assert saved, "no checkpoint was saved"

    prefect.retry(run)
    wait_for("a job of the retry", lambda: installation.jobs("train"), 120)
    (job,) = installation.jobs("train")
    for process in installation.house.processes("prefect.engine"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    prefect.wait(run, "CRASHED", 180)
    assert installation.jobs("train"), "the job goes on while its lease does"
    prefect.retry(run)
    wait_for(
        "the job to be adopted",
        lambda: any("is there already" in line for line in installation.house.logs(run)),
        120,
    )
    assert json.dumps(job["metadata"]["uid"]) in json.dumps(installation.jobs("train"))
    prefect.cancel(run)
    prefect.wait(run, "CANCELLED", CANCEL_LIMIT_S)
