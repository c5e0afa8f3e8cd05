"""The small cluster does what a real one (v1.36) was recorded to do, state by state.

Each transcript is run in a loop whose time jumps to the next thing that happens, with containers
that last as long as the recorded ones; what is compared is what the cluster makes of that.
"""

import asyncio
import copy
import json
import selectors
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.jobs.cluster_objects import Object, condition
from tests.jobs.job_look import index_of
from tests.jobs.pod_runner import Container, Delays
from tests.jobs.small_cluster import SmallCluster

TRANSCRIPTS = Path(__file__).parent / "transcripts"
SCENARIOS = sorted(file.stem for file in TRANSCRIPTS.glob("*.jsonl"))
EPOCH_S = 1_800_000_000.0
END_S = 120.0


class JumpingSelector(selectors.SelectSelector):
    """Never waits: whoever would wait finds that the time has passed."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.passed_s += timeout or 0.0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed_s


class Line(NamedTuple):
    """One line of a transcript."""

    kind: str
    moment_s: float
    action: str
    object: Object


class Transcript:
    """What was recorded of one job."""

    def __init__(self, name: str) -> None:
        text = (TRANSCRIPTS / f"{name}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        self.logs: dict[str, Any] = lines.pop()["object"]
        self.lines = [Line(x["kind"], x["t"], x["type"], x["object"]) for x in lines]
        self.job = next(line.object for line in self.lines if line.kind == "job")

    def pod_lines(self) -> dict[str, list[Line]]:
        """Return each pod's lines, in the order in which the pods came."""
        pods: dict[str, list[Line]] = {}
        for line in self.lines:
            if line.kind == "pod":
                pods.setdefault(line.object["metadata"]["name"], []).append(line)
        return pods


def pod_state(pod: Object, action: str) -> tuple[object, ...]:
    """Return what hvkf looks at in a pod."""
    state: tuple[object, ...] = ()
    for status in pod["status"].get("containerStatuses", ()):
        ((kind, details),) = status["state"].items()
        state = (kind, details.get("reason"), details.get("exitCode"))
    scheduled = condition(pod, "PodScheduled")
    ready = condition(pod, "Ready")
    disrupted = condition(pod, "DisruptionTarget")
    return (
        "gone" if action == "DELETED" else "there",
        pod["status"]["phase"],
        pod["status"].get("reason"),
        "deleted" if pod["metadata"].get("deletionTimestamp") else "",
        scheduled and (scheduled["status"], scheduled.get("reason"), scheduled.get("message")),
        ready and ready["status"],
        disrupted and disrupted["reason"],
        state,
    )


def job_state(job: Object, action: str) -> Object:
    """Return all that a job says, but for times and names of pods."""
    status = copy.deepcopy(job["status"])
    for moment in ("startTime", "completionTime"):
        status.pop(moment, None)
    keys = ("type", "status", "reason")
    status["conditions"] = [
        *(tuple(entry[key] for key in keys) for entry in status.get("conditions", ()))
    ]
    for kind, uids in status.get("uncountedTerminatedPods", {}).items():
        status["uncountedTerminatedPods"][kind] = len(uids)
    suspended, deleted = job["spec"].get("suspend"), "deletionTimestamp" in job["metadata"]
    return {**status, "action": action, "suspended": suspended, "deleted": deleted}


def without_repeats(states: list[Any]) -> list[Any]:
    """Leave out states that equal the one before, but for whether they were new."""
    kept: list[Any] = []
    for state in states:
        if not kept or state != kept[-1]:
            kept.append(state)
    return kept


def job_states(lines: list[Line]) -> list[Any]:
    found = [job_state(line.object, line.action) for line in lines if line.kind == "job"]
    return without_repeats(found)


def pod_states(pods: dict[str, list[Line]]) -> dict[int, list[Any]]:
    """Return the states of each index' pods, one pod after the other."""
    found: dict[int, list[Any]] = {}
    for lines in pods.values():
        index = index_of(lines[0].object)
        states = [pod_state(line.object, line.action) for line in lines]
        found.setdefault(index, []).append(without_repeats(states))
    return found


class Recorded:
    """A container that lasts, ends and speaks as a recorded one did."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, lines: list[Line], end: Callable[[int], None]
    ) -> None:
        self._loop, self._end = loop, end
        began_s = next(
            line.moment_s for line in lines if line.object["status"].get("phase") == "Running"
        )
        self._stop_s = 0.0
        self.code = 0
        for line in lines:
            for status in line.object["status"].get("containerStatuses", ()):
                if "terminated" in status["state"]:
                    self.code = status["state"]["terminated"]["exitCode"]
                    told_s = next((x.moment_s for x in lines if _is_deleted(x)), None)
                    if told_s is not None and told_s < line.moment_s:
                        self._stop_s = line.moment_s - told_s
                    else:
                        loop.call_later(line.moment_s - began_s, lambda: end(self.code))
                    return

    def terminate(self) -> None:
        self._loop.call_later(self._stop_s, lambda: self._end(self.code))

    def kill(self) -> None:
        raise AssertionError("no recorded container was killed")


def _is_deleted(line: Line) -> bool:
    return "deletionTimestamp" in line.object["metadata"]


def replay(transcript: Transcript) -> SmallCluster:
    """Run a transcript's job, with what was done to it from outside."""
    loop = JumpingLoop()
    waiting = {
        index: [
            lines for lines in transcript.pod_lines().values() if index_of(lines[0].object) == index
        ]
        for index in range(transcript.job["spec"]["completions"])
    }
    lines_of: dict[str, list[Line]] = {}

    def recorded(pod: Object) -> list[Line]:
        name = pod["metadata"]["name"]
        if name not in lines_of:
            lines_of[name] = waiting[index_of(pod)].pop(0)
        return lines_of[name]

    def launch(pod: Object, say: Callable[[str], None], end: Callable[[int], None]) -> Container:
        name = recorded(pod)[0].object["metadata"]["name"]
        said = transcript.logs.get(name, "")
        for line in said.splitlines():
            say(line)
        if "OOMKilled" in str(recorded(pod)[-1].object["status"]):
            cluster.pods.out_of_memory.add(pod["metadata"]["name"])
        return Recorded(loop, recorded(pod), end)

    cluster = SmallCluster(loop, launch, 1.0, EPOCH_S)
    cluster.pods.delays = lambda pod: delays_of(recorded(pod))
    set_the_scene(transcript, cluster)
    job = copy.deepcopy(transcript.job)
    loop.call_later(first_moment(transcript), lambda: cluster.create_job(job))
    for moment_s, what in deeds(transcript, cluster):
        loop.call_later(moment_s, what)
    loop.run_until_complete(asyncio.sleep(END_S))
    loop.close()
    return cluster


def first_moment(transcript: Transcript) -> float:
    return next(line.moment_s for line in transcript.lines if line.kind == "job")


def delays_of(lines: list[Line]) -> Delays:
    """Take a pod's pace from its record."""

    def moment(is_it: Callable[[Object], bool]) -> float | None:
        return next((line.moment_s for line in lines if is_it(line.object)), None)

    created_s = lines[0].moment_s
    scheduled_s = moment(lambda pod: condition(pod, "PodScheduled") is not None) or created_s
    prepared_s = moment(lambda pod: "containerStatuses" in pod["status"]) or scheduled_s
    started_s = moment(lambda pod: pod["status"]["phase"] == "Running") or prepared_s + 0.8
    ended_s = moment(lambda pod: "terminated" in str(pod["status"].get("containerStatuses")))
    finished_s = moment(lambda pod: pod["status"]["phase"] in ("Failed", "Succeeded"))
    return Delays(
        scheduled_s - created_s,
        prepared_s - scheduled_s,
        started_s - prepared_s,
        (finished_s or 0.0) - (ended_s or 0.0),
    )


def set_the_scene(transcript: Transcript, cluster: SmallCluster) -> None:
    """Let the node lack what the recorded one lacked."""
    for lines in transcript.pod_lines().values():
        for line in lines:
            scheduled = condition(line.object, "PodScheduled")
            if scheduled is not None and scheduled["status"] == "False":
                cluster.pods.num_gpus = 0
            for status in line.object["status"].get("containerStatuses", ()):
                waiting = status["state"].get("waiting", {})
                if waiting.get("reason") not in (None, "ContainerCreating"):
                    said = (waiting["reason"], waiting["message"])
                    cluster.pods.missing_images[status["image"]] = said


def deeds(transcript: Transcript, cluster: SmallCluster) -> list[tuple[float, Callable[[], None]]]:
    """List what people and drained nodes did: evictions, a deletion, an end of a suspension."""
    name = transcript.job["metadata"]["name"]
    found: list[tuple[float, Callable[[], None]]] = []
    for lines in transcript.pod_lines().values():
        for line in lines:
            if condition(line.object, "DisruptionTarget") is not None:
                index = index_of(line.object)
                found.append((line.moment_s, partial(evict, cluster, index)))
                break
    jobs = [line for line in transcript.lines if line.kind == "job"]
    for line in jobs:
        if "deletionTimestamp" in line.object["metadata"]:
            found.append((line.moment_s, lambda: cluster.delete_job(name)))
            break
    if transcript.job["spec"].get("suspend"):
        resumed = next(line for line in jobs if not line.object["spec"]["suspend"])
        found.append((resumed.moment_s, lambda: resume(cluster, name)))
    return found


def evict(cluster: SmallCluster, index: int) -> None:
    (pod,) = [pod for pod in cluster.objects.all("pods") if index_of(pod) == index]
    cluster.pods.evict(pod["metadata"]["name"])


def resume(cluster: SmallCluster, name: str) -> None:
    cluster.objects.change("jobs", name, lambda job: job["spec"].update(suspend=False))


def seen_in(cluster: SmallCluster) -> tuple[list[Line], dict[str, list[Line]]]:
    """Return what a watch of the small cluster would have seen."""
    kinds = {"jobs": "job", "pods": "pod"}
    lines = [
        Line(kinds[entry.kind], 0.0, entry.action, entry.object)
        for entry in cluster.objects.journal
        if entry.kind in kinds
    ]
    pods: dict[str, list[Line]] = {}
    for line in lines:
        if line.kind == "pod":
            pods.setdefault(line.object["metadata"]["name"], []).append(line)
    return lines, pods


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_small_cluster_does_as_the_real_one_did(name: str) -> None:
    transcript = Transcript(name)
    cluster = replay(transcript)
    lines, pods = seen_in(cluster)
    assert job_states(lines) == job_states(transcript.lines)
    assert pod_states(pods) == pod_states(transcript.pod_lines())


def test_every_recorded_case_is_replayed() -> None:
    assert len(SCENARIOS) == 14
