"""What Kubernetes' job controller does with Indexed Jobs, as far as hvkf's jobs need it.

It looks at a job about a second after something happened to it or its pods, and writes its status
in two steps: the pods that ended, as not counted yet; then their number. `transcripts/` holds what
a real one did.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

from tests.jobs.cluster_objects import (
    Entry,
    Object,
    Objects,
    condition,
    random_suffix,
    set_condition,
)
from tests.jobs.job_look import BACKOFF_S, FAILURES, INDEX, TRACKING, Look, is_active

BATCH_S = 1.0
JOB_NAME = "batch.kubernetes.io/job-name"


class Refused(Exception):
    """A pod may not be made; the message says why."""


class Hands(NamedTuple):
    """What the controller has others do: wait, and make and delete pods."""

    later: Callable[[float, Callable[[], None]], Callable[[], None]]  # returns how to cancel it
    now: Callable[[], float]
    create_pod: Callable[[Object], None]
    delete_pod: Callable[[str], None]


class JobController:
    """Makes jobs' pods, counts their ends, and ends the jobs."""

    def __init__(self, objects: Objects, hands: Hands) -> None:
        self._objects = objects
        self._hands = hands
        self._due: dict[str, tuple[float, Callable[[], None]]] = {}
        objects.listeners.append(self._heed)

    def _heed(self, entry: Entry) -> None:
        metadata = entry.object["metadata"]
        if entry.kind == "jobs":
            name = metadata["name"]
            is_new = entry.action == "ADDED" or _was_resumed(entry.object)
            if entry.action != "DELETED":
                self._soon(name, 0.0 if is_new else BATCH_S)
        elif entry.kind == "pods" and JOB_NAME in metadata["labels"]:
            self._soon(metadata["labels"][JOB_NAME], BATCH_S)

    def _soon(self, name: str, delay_s: float) -> None:
        when_s = self._hands.now() + delay_s
        if name in self._due:
            if self._due[name][0] <= when_s:
                return
            self._due[name][1]()
        self._due[name] = (when_s, self._hands.later(delay_s, lambda: self._sync(name)))

    def _sync(self, name: str) -> None:
        self._due.pop(name, None)
        job = self._objects.get("jobs", name)
        if job is None or job["metadata"].get("deletionTimestamp") or _has_ended(job):
            return
        if job["spec"].get("suspend"):
            self._suspend(name)
            return
        look = Look(job, self.pods_of(name), self._hands.now())
        if look.ends_as in ("", "FailedIndexes", "CompletionsReached"):
            self._make_pods(look)
        else:
            for pod in look.active:
                self._hands.delete_pod(pod["metadata"]["name"])
                message = f"Deleted pod: {pod['metadata']['name']}"
                self._objects.tell(job, "Normal", "SuccessfulDelete", message)
        self._write(name, look)
        if (seconds := job["spec"].get("activeDeadlineSeconds")) is not None:
            left_s = look.started_s + seconds - self._hands.now()
            if left_s > 0:
                self._soon(name, left_s)

    def pods_of(self, name: str) -> list[Object]:
        """Return a job's pods."""
        pods = self._objects.all("pods")
        return [pod for pod in pods if pod["metadata"]["labels"].get(JOB_NAME) == name]

    def _suspend(self, name: str) -> None:
        for pod in self.pods_of(name):
            if is_active(pod):
                self._hands.delete_pod(pod["metadata"]["name"])

        def mutate(job: Object) -> None:
            job["status"] |= {"ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
            job["status"].pop("active", None)
            message = {"reason": "JobSuspended", "message": "Job suspended"}
            set_condition(job, "Suspended", "True", **message)

        before = self._objects.get("jobs", name)
        changed = self._objects.change("jobs", name, mutate)
        if changed != before:
            self._objects.tell(changed, "Normal", "Suspended", "Job suspended")

    def _make_pods(self, look: Look) -> None:
        """Make a pod for each index that lacks one, as soon as its last failure is long enough ago.

        A refusal is told as an event, and tried again.
        """
        name = look.job["metadata"]["name"]
        if look.ends_as:
            return
        room = int(look.job["spec"]["parallelism"]) - len(look.active) - look.num_held
        for index in look.wanted():
            if room <= 0:
                return
            room -= 1
            wait_s = look.backoff_left_s(index)
            if wait_s > 0:
                self._soon(name, wait_s)
                continue
            pod = pod_of(look.job, index, look.failures_of(index))
            try:
                self._hands.create_pod(pod)
            except Refused as fault:
                message = f"Error creating: {fault}"
                self._objects.tell(look.job, "Warning", "FailedCreate", message)
                self._soon(name, BACKOFF_S)
                return
            look.created.append(pod)
            message = f"Created pod: {pod['metadata']['name']}"
            self._objects.tell(look.job, "Normal", "SuccessfulCreate", message)

    def _write(self, name: str, look: Look) -> None:
        """Write the status: first what ended and is not counted yet, then its number."""
        self._objects.change("jobs", name, look.first_status)
        counted = [*look.counted, *look.ignored, *look.succeeded_now]
        for pod in counted:
            if self._objects.get("pods", pod["metadata"]["name"]) is not None:
                self._objects.change("pods", pod["metadata"]["name"], _untrack)
        is_over = bool(look.ends_as) and not look.num_terminating()
        kind = "Complete" if look.ends_as == "CompletionsReached" else "Failed"

        def conclude(seen: Object) -> None:
            if look.counted:
                look.second_status(seen)
            if is_over:
                look.end(seen, kind)

        job = self._objects.change("jobs", name, conclude)
        if is_over and kind == "Complete":
            self._objects.tell(job, "Normal", "Completed", "Job completed")
        elif is_over:
            self._objects.tell(job, "Warning", look.ends_as, look.message)


def pod_of(job: Object, index: int, num_failures: int) -> Object:
    """Make the pod of an index from a job's template."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    template = copy.deepcopy(job["spec"]["template"])
    labels = {**template["metadata"].get("labels", {}), JOB_NAME: name, INDEX: str(index)}
    annotations = {**template["metadata"].get("annotations", {}), INDEX: str(index)}
    if job["spec"].get("backoffLimitPerIndex") is not None:
        annotations[FAILURES] = str(num_failures)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
    metadata = {
        "name": f"{name}-{index}-{random_suffix()}",
        "namespace": job["metadata"]["namespace"],
        "labels": labels,
        "annotations": annotations,
        "finalizers": [TRACKING],
        "ownerReferences": [owner],
    }
    spec = {**template["spec"], "hostname": f"{name}-{index}"}
    status = {"phase": "Pending"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def _was_resumed(job: Object) -> bool:
    suspended = condition(job, "Suspended")
    is_on = suspended is not None and suspended["status"] == "True"
    return is_on and not job["spec"].get("suspend")


def _has_ended(job: Object) -> bool:
    return any(condition(job, kind) is not None for kind in ("Complete", "Failed"))


def _untrack(pod: Object) -> None:
    kept = [name for name in pod["metadata"].get("finalizers", ()) if name != TRACKING]
    pod["metadata"]["finalizers"] = kept
