"""The API of the tests refuses as a real one did: its answers are the recorded ones."""

import copy
import json
from typing import Any

import pytest
import urllib3

from tests.jobs.api_server import ERRORS
from tests.jobs.cluster_objects import Object
from tests.jobs.running_cluster import RunningCluster

HTTP = urllib3.PoolManager(retries=False)
JOB: Object = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "twice"},
    "spec": {
        "suspend": True,
        "template": {"spec": {"containers": [{"name": "main", "image": "i", "command": ["true"]}]}},
    },
}
JOBS, PODS = "/apis/batch/v1/namespaces/hvkf/jobs", "/api/v1/namespaces/hvkf/pods"


def ask(cluster: RunningCluster, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request; return the status and the JSON, or the list of JSON lines."""
    answer = HTTP.request(method, f"{cluster.address}{path}", json=body, timeout=10.0)
    lines = [json.loads(line) for line in answer.data.splitlines()]
    return answer.status, lines[0] if len(lines) == 1 else lines


def job(name: str, **labels: str) -> Object:
    made = copy.deepcopy(JOB)
    made["metadata"] |= {"name": name, "labels": labels}
    return made


def in_this_namespace(case: str) -> Object:
    """Return a recorded refusal, of the namespace and user of the tests."""
    text = json.dumps(ERRORS[case]["body"])
    text = text.replace("system:serviceaccount:errors:weak", "weak")
    found: Object = json.loads(text.replace('namespace \\"errors\\"', 'namespace \\"hvkf\\"'))
    return found


CASES: list[tuple[str, str, str, Any]] = [
    ("already-exists", "POST", JOBS, job("twice")),
    ("job-missing", "GET", f"{JOBS}/absent", None),
    ("log-of-missing-pod", "GET", f"{PODS}/absent/log", None),
    ("namespace-missing", "POST", "/apis/batch/v1/namespaces/absent/jobs", job("x")),
    ("invalid-label-value", "POST", JOBS, job("label", scenario="a b/c")),
    ("invalid-name-too-long", "POST", JOBS, job("x" * 64)),
    ("job-count-quota-exceeded", "POST", JOBS, job("third")),
    ("forbidden-create-job", "POST", JOBS, job("x")),
    ("forbidden-watch-pods", "GET", f"{PODS}?watch=true", None),
    ("unauthorized-bad-token", "GET", PODS, None),
]


@pytest.mark.parametrize(("case", "method", "path", "body"), CASES, ids=[x[0] for x in CASES])
def test_refusals_are_the_recorded_ones(
    cluster: RunningCluster, case: str, method: str, path: str, body: Any
) -> None:
    cluster.api.user = "weak"
    ask(cluster, "POST", JOBS, job("twice"))
    if case == "job-count-quota-exceeded":
        ask(cluster, "POST", JOBS, job("second"))
        cluster.api.job_quota = 2
    if case.startswith("forbidden"):
        cluster.api.forbidden = {("create", "jobs"), ("watch", "pods")}
    if case.startswith("unauthorized"):
        cluster.api.tokens = {"another"}
    assert ask(cluster, method, path, body) == (ERRORS[case]["status"], in_this_namespace(case))


def test_a_watch_from_too_long_ago_is_told_so(cluster: RunningCluster) -> None:
    cluster.do(lambda seen: setattr(seen.objects, "forgotten", 570))
    recorded = ERRORS["watch-too-old"]["ok"][0]
    found = ask(cluster, "GET", f"{PODS}?watch=true&resourceVersion=1&timeoutSeconds=1")
    assert found == (200, recorded)


def test_a_watch_from_the_future_waits(cluster: RunningCluster) -> None:
    assert ERRORS["watch-future-resource-version"]["ok"] == []
    path = f"{PODS}?watch=true&resourceVersion=999999&timeoutSeconds=1"
    assert ask(cluster, "GET", path) == (200, [])


def test_a_list_in_pages_whose_place_is_forgotten_is_told_so(cluster: RunningCluster) -> None:
    for name in ("one", "two", "three"):
        ask(cluster, "POST", JOBS, job(name))
    _, page = ask(cluster, "GET", f"{JOBS}?limit=2")
    assert [found["metadata"]["name"] for found in page["items"]] == ["one", "two"]
    token = page["metadata"]["continue"]
    _, rest = ask(cluster, "GET", f"{JOBS}?limit=2&continue={token}")
    assert [found["metadata"]["name"] for found in rest["items"]] == ["three"]
    cluster.api.num_expired_pages = 1
    recorded = ERRORS["continue-token-expired"]
    found = ask(cluster, "GET", f"{JOBS}?limit=2&continue={token}")
    assert found == (recorded["status"], recorded["body"])


def test_a_review_that_is_denied_answers_as_recorded(cluster: RunningCluster) -> None:
    cluster.api.forbidden = {("create", "jobs")}
    recorded = ERRORS["access-review-denied"]["ok"]
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert ask(cluster, "POST", path, recorded) == (201, recorded)


def test_what_a_created_job_is_given_is_in_the_recorded_one(cluster: RunningCluster) -> None:
    status, made = ask(cluster, "POST", JOBS, job("twice"))
    recorded = ERRORS["created"]["ok"]
    assert status == 201
    assert made["metadata"].keys() <= recorded["metadata"].keys()
    assert made["spec"].keys() <= recorded["spec"].keys()
    assert made["status"] == recorded["status"]
    assert ask(cluster, "GET", f"{JOBS}/twice")[1]["metadata"]["uid"] == made["metadata"]["uid"]


def test_pods_above_the_quota_are_refused_in_an_event_with_the_recorded_words(
    cluster: RunningCluster,
) -> None:
    (recorded,) = ERRORS["gpu-quota-events"]
    cluster.do(lambda seen: setattr(seen, "gpu_quota", 1))
    greedy = job("greedy")
    greedy["spec"] |= copy.deepcopy(ERRORS["gpu-quota-job-accepted"]["ok"]["spec"])
    assert ask(cluster, "POST", JOBS, greedy)[0] == 201
    events = cluster.wait(lambda seen: list(seen.objects.all("events")))
    (event,) = [event for event in events if event["reason"] == recorded["reason"]]
    assert event["type"] == recorded["type"]
    pod = event["message"].split('"')[1]
    assert pod.startswith("greedy-")
    assert event["message"].replace(pod, "greedy-mnrzf") == recorded["message"]
