"""What is wrong with a cluster ends in one sentence with the fix, and leaves no job behind."""

import re
import threading
import time
from pathlib import Path

import pytest

from hvkf.errors import HvkfError
from hvkf.storage import FolderStore
from tests.jobs.running_cluster import RunningCluster, use_kubeconfig
from tests.jobs.waiting import DONE, Waiter, plan_of

LIMIT_S = 30.0
STEPS = "while true; do echo step; sleep 0.1; done"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "workspace").mkdir()
    return FolderStore(tmp_path / "workspace")


def sentence(cluster: RunningCluster, waiter: Waiter) -> str:
    """Wait for a run's fault, and check that it comes soon, is one sentence, and leaves no job."""
    began_s = time.monotonic()
    fault = waiter.end().fault
    assert time.monotonic() - began_s < LIMIT_S
    assert isinstance(fault, HvkfError), fault
    assert "\n" not in str(fault)
    assert str(fault).endswith(".") or str(fault).endswith(")")
    cluster.wait(lambda seen: not seen.objects.all("jobs"))
    left = [thread.name for thread in threading.enumerate()]
    assert not [name for name in left if name.startswith(("watch ", "log ", "lease "))]
    return str(fault)


def test_no_api(
    cluster: RunningCluster, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvkf.jobs.kubernetes.FIRST_CONTACT_S", 1.0)
    use_kubeconfig(tmp_path, "http://127.0.0.1:9", monkeypatch)
    told = sentence(cluster, Waiter(plan_of(store, DONE), store))
    assert "The Kubernetes API at http://127.0.0.1:9 gave no answer" in told
    assert "check that it runs, and that this machine reaches it" in told


def test_no_kubeconfig(
    cluster: RunningCluster, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = str(tmp_path / "absent")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", absent)
    told = sentence(cluster, Waiter(plan_of(store, DONE), store))
    assert "set KUBECONFIG to a kubeconfig file, or jobs.cluster.context" in told


def test_an_expired_token(cluster: RunningCluster, store: FolderStore) -> None:
    cluster.api.tokens = {"another"}
    told = sentence(cluster, Waiter(plan_of(store, DONE), store))
    assert "does not accept this token or certificate (401)" in told
    assert "log in again" in told


def test_a_token_that_expires_while_a_job_runs(cluster: RunningCluster, store: FolderStore) -> None:
    """Here no job can be deleted either; the reaper does so."""
    waiter = Waiter(plan_of(store, STEPS), store)
    cluster.running()
    cluster.api.tokens = {"another"}
    cluster.api.is_away = True
    time.sleep(0.5)
    cluster.api.is_away = False
    assert "(401)" in str(waiter.end().fault)
    assert waiter.said("`hvkf jobs reap` does so")


def test_a_token_file_with_a_new_token_is_read_again(
    cluster: RunningCluster, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    use_kubeconfig(tmp_path, cluster.address, monkeypatch, tokenFile=str(file))
    cluster.api.tokens = {"old"}
    script = f'until [ -e "$OUT/enough" ]; do echo step; sleep 0.1; done; {DONE}'
    waiter = Waiter(plan_of(store, script), store)
    cluster.running()
    file.write_text("new")
    cluster.api.tokens = {"new"}
    cluster.api.is_away = True
    time.sleep(0.5)
    cluster.api.is_away = False
    cluster.wait(lambda _: cluster.api.tokens_met["new"] > 0)
    assert cluster.api.tokens_met["old"] > 0
    store.put("enough", b"")
    waiter.result()


FORBIDDEN = {
    ("list", "jobs"): "batch",
    ("watch", "jobs"): "batch",
    ("create", "jobs"): "batch",
    ("list", "pods"): "",
    ("watch", "pods"): "",
    ("list", "events"): "",
    ("watch", "events"): "",
}


@pytest.mark.parametrize(("verb", "resource"), FORBIDDEN)
def test_forbidden(cluster: RunningCluster, store: FolderStore, verb: str, resource: str) -> None:
    cluster.api.forbidden = {(verb, resource)}
    told = sentence(cluster, Waiter(plan_of(store, STEPS), store))
    group = FORBIDDEN[verb, resource]
    assert f"hvkf-flow may not {verb} {resource} in namespace hvkf" in told
    rule = f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}}'
    assert f"add the rule {rule} to its Role" in told


def test_a_namespace_that_is_missing(cluster: RunningCluster, store: FolderStore) -> None:
    plan = plan_of(store, DONE, cluster={"namespace": "absent"})
    told = sentence(cluster, Waiter(plan, store))
    assert "There is no namespace 'absent': kubectl create namespace absent" in told


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ErrImageNeverPull", "is not present with pull policy of Never"),
        ("ErrImagePull", "manifest unknown"),
        ("ImagePullBackOff", "pull access denied, repository does not exist"),
        ("InvalidImageName", "couldn't parse image name"),
    ],
)
def test_an_image_that_is_missing(
    cluster: RunningCluster, store: FolderStore, reason: str, message: str
) -> None:
    cluster.do(lambda seen: seen.pods.missing_images.update({"image:1": (reason, message)}))
    told = sentence(cluster, Waiter(plan_of(store, DONE), store))
    assert f"the image image:1 of cache cannot be had ({reason}: {message})" in told
    assert "push it, or set jobs.cluster.image" in told


def test_no_node_with_such_a_gpu(cluster: RunningCluster, store: FolderStore) -> None:
    cluster.do(lambda seen: setattr(seen.pods, "num_gpus", 4))
    plan = plan_of(store, DONE, gpus_per_pod=8, start_timeout_s=1)
    waiter = Waiter(plan, store)
    told = sentence(cluster, waiter)
    fix = "add a node with that many free nvidia.com/gpu, or lower jobs.cache.gpus_per_pod"
    assert fix in told
    assert waiter.said(fix), "it is told as soon as it is known, while there is hope"


def test_a_quota_that_the_pods_can_never_fit(cluster: RunningCluster, store: FolderStore) -> None:
    cluster.do(lambda seen: setattr(seen, "gpu_quota", 1))
    told = sentence(cluster, Waiter(plan_of(store, DONE, gpus_per_pod=4), store))
    assert "Quota q is exceeded (requested requests.nvidia.com/gpu=4" in told
    assert "raise the quota" in told


def test_a_quota_that_others_use_is_waited_for(
    cluster: RunningCluster, store: FolderStore, tmp_path: Path
) -> None:
    cluster.do(lambda seen: setattr(seen, "gpu_quota", 1))
    details: list[str] = []
    plan = plan_of(store, DONE, num_parts=2, gpus_per_pod=1)
    waiter = Waiter(plan, store, details=details).result()
    assert waiter.said("Quota q is exceeded: wait for other jobs")
    assert "Quota q is exceeded (requested requests.nvidia.com/gpu=1" in details[0]


def test_a_quota_of_jobs(cluster: RunningCluster, store: FolderStore) -> None:
    cluster.api.job_quota = 0
    told = sentence(cluster, Waiter(plan_of(store, DONE), store))
    assert re.search(r"Quota q is exceeded \(requested count/jobs\.batch=1, used .*=0", told)


def test_a_clock_that_is_wrong(cluster: RunningCluster, store: FolderStore) -> None:
    cluster.api.skew_s = 1000.0
    told = sentence(cluster, Waiter(plan_of(store, DONE), store))
    assert re.search(r"clock is (999|1000|1001) s behind the Kubernetes API's", told)
    assert "set it right (chronyc makestep)" in told


def test_a_field_that_is_none_of_a_pods(cluster: RunningCluster, store: FolderStore) -> None:
    plan = plan_of(store, DONE)
    jobs = plan.config["jobs"]["cache"]
    jobs["pod_patch"] += [{"op": "add", "path": "/spec/gpuz", "value": 1}]
    told = sentence(cluster, Waiter(plan, store))
    assert "is not a Job" in told
    assert "gpuz" in told
    assert "check pod_patch" in told
