"""The recorded jobs once more, their commands run as processes: they end as the recorded ones."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.cluster_objects import Object, condition
from tests.jobs.job_look import index_of
from tests.jobs.running_cluster import RunningCluster, running_cluster
from tests.jobs.small_cluster import NAMESPACE
from tests.jobs.test_transcripts import Transcript, job_state

# Those whose containers run, but for the one that would use up this machine's memory.
EVICTED = ("evicted", "gang-member-evicted")
BY_THEMSELVES = (
    "exit-code-fail-job",
    "exit-code-retried",
    "fail-index",
    "gang-member-fails",
    "per-index-failure",
    "success-indexed",
)
LIMIT_S = 60.0


def end_of(job: Object) -> Object:
    """Return how a job ended."""
    kept = ("conditions", "failed", "succeeded", "completedIndexes", "failedIndexes")
    state = job_state(job, "")
    return {name: state[name] for name in kept if name in state}


def exit_codes(pods: list[Object]) -> dict[int, list[int]]:
    """Map each index to the codes that its pods ended with, as they are last seen."""
    found: dict[int, list[int]] = {}
    for pod in pods:
        for status in pod["status"].get("containerStatuses", ()):
            if "terminated" in status["state"]:
                code = status["state"]["terminated"]["exitCode"]
                found.setdefault(index_of(pod), []).append(code)
    return found


def pods_of(cluster: RunningCluster) -> list[Object]:
    """Return all pods that there ever were, as they were last seen."""
    entries = cluster.do(lambda seen: list(seen.objects.journal))
    pods = [entry.object for entry in entries if entry.kind == "pods"]
    return list({pod["metadata"]["name"]: pod for pod in pods}.values())


def begin(cluster: RunningCluster, transcript: Transcript) -> str:
    """Create a transcript's job; return its name."""
    job: dict[str, Any] = copy.deepcopy(transcript.job)
    job["metadata"]["namespace"] = NAMESPACE
    cluster.do(lambda seen: seen.create_job(job))
    return str(job["metadata"]["name"])


def check_logs(cluster: RunningCluster, transcript: Transcript) -> None:
    """Compare what the pods of each index said."""
    names = {pod["metadata"]["name"]: index_of(pod) for pod in pods_of(cluster)}
    logs = cluster.do(lambda seen: {name: list(said) for name, said in seen.pods.logs.items()})
    ours = sorted((names[name], [line for _, line in said]) for name, said in logs.items())
    indexes = {n: index_of(lines[0].object) for n, lines in transcript.pod_lines().items()}
    said = transcript.logs.items()
    recorded = sorted((indexes[name], text.splitlines()) for name, text in said)
    assert ours == recorded


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_a_job_ends_as_the_recorded_one(tmp_path: Path, name: str) -> None:
    transcript = Transcript(name)
    with running_cluster(tmp_path, pace=0.1) as cluster:
        job = begin(cluster, transcript)
        _wait_for_the_end(cluster, job)
        recorded = [line.object for line in transcript.lines if line.kind == "job"][-1]
        assert end_of(cluster.jobs()[0]) == end_of(recorded)
        last = [lines[-1].object for lines in transcript.pod_lines().values()]
        assert exit_codes(pods_of(cluster)) == exit_codes(last)
        if name != "gang-member-fails":  # one of its logs was gone when they were recorded
            check_logs(cluster, transcript)


@pytest.mark.parametrize("name", EVICTED)
def test_an_evicted_pod_hears_of_it_and_its_job_does_as_the_recorded_one(
    tmp_path: Path, name: str
) -> None:
    transcript = Transcript(name)
    with running_cluster(tmp_path, pace=0.1) as cluster:
        job = begin(cluster, transcript)
        pod = cluster.running(index=0)
        if name.startswith("gang"):
            cluster.running(index=1)
        cluster.do(lambda seen: seen.pods.evict(pod))
        if name.startswith("gang"):
            _wait_for_the_end(cluster, job)
        else:
            cluster.wait(
                lambda seen: pod not in {x["metadata"]["name"] for x in seen.objects.all("pods")}
            )
            cluster.running(index=0)
        recorded = [line.object for line in transcript.lines if line.kind == "job"][-1]
        assert end_of(cluster.jobs()[0]) == end_of(recorded)
        last = [lines[-1].object for lines in transcript.pod_lines().values()]
        assert exit_codes(pods_of(cluster)) == exit_codes(last)
        check_logs(cluster, transcript)


def _wait_for_the_end(cluster: RunningCluster, name: str) -> None:
    """Wait until a job has ended, and what is left of its pods is settled."""

    def has_ended(job: Object | None) -> bool:
        kinds = ("Complete", "Failed")
        return job is not None and any(condition(job, kind) for kind in kinds)

    cluster.wait(lambda seen: has_ended(seen.objects.get("jobs", name)), LIMIT_S)
