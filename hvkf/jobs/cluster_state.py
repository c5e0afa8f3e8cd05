"""What the cluster says of a job and its pods, in words: pure readings of the API's objects."""

import re
from typing import Any, NamedTuple

from hvkf.crashes import OUT_OF_MEMORY, crash_of
from hvkf.errors import BadInput, HvkfError, TryAgain
from hvkf.jobs.kubernetes_faults import exceeds_whole_quota, quota_words
from hvkf.jobs.manifest import ATTEMPT_LABEL, CONTAINER, OWNER_PREFIX, Manifest
from hvkf.jobs.spec import BAD_INPUT_CODE, KILLED_CODE, STOPPED_CODE, TRY_AGAIN_CODE

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
SIGNAL_CODES = 128
IMAGE_REASONS = ("ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName")
# What a registry says of an image that no waiting brings.
IMAGE_NEVER = ("not found", "manifest unknown", "denied", "unauthorized", "does not exist")
COMMAND_REASONS = ("StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError")
DISRUPTIONS = {
    "EvictionByEvictionAPI": "evicted (its node is drained)",
    "PreemptionByScheduler": "preempted by pods of higher priority",
    "DeletionByTaintManager": "evicted from a node that was tainted or lost",
    "DeletionByPodGC": "lost with its node",
    "TerminationByKubelet": "ended by its node (shutdown, or short of memory or disk)",
}


class Killed(TryAgain):
    """A pod was killed, and not for its memory."""


class OutOfMemory(BadInput):
    """A pod used more memory than it has."""


class Blocked(NamedTuple):
    """Why a pod does not start; `is_final` when no waiting helps.

    `sentence` has the cluster's own words, which change while the reason stays; `brief` has not.
    """

    sentence: str
    is_final: bool
    brief: str


def _block(what: str, words: str, fix: str, *, is_final: bool) -> Blocked:
    return Blocked(f"{what} ({words}): {fix}", is_final, f"{what}: {fix}")


class PodEnd(NamedTuple):
    """How a pod ended. `code` is None where its container never ran or its end is not known."""

    name: str
    part_index: int
    code: int | None
    cause: str
    fault: type[HvkfError]
    fix: str
    message: str
    was_disrupted: bool


def finished(job: Manifest) -> tuple[str, str, str] | None:
    """Return (Complete or Failed, reason, message) of a job that has ended."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], condition.get("reason", ""), condition.get("message", "")
    return None


def is_deleted(job: Manifest) -> bool:
    """Whether a job is being deleted."""
    return bool(job["metadata"].get("deletionTimestamp"))


def is_suspended(job: Manifest) -> bool:
    """Whether a job waits to be admitted."""
    return bool(job["spec"].get("suspend"))


def attempt_of(job: Manifest) -> int:
    """Return which attempt a job is."""
    return int(job["metadata"].get("labels", {}).get(ATTEMPT_LABEL, "0"))


def owners_of(job: Manifest) -> dict[str, str]:
    """Map a job's owners to the times until which they keep it."""
    annotations = job["metadata"].get("annotations") or {}
    return {
        name.removeprefix(OWNER_PREFIX): until
        for name, until in annotations.items()
        if name.startswith(OWNER_PREFIX)
    }


def job_of(pod: Manifest) -> str:
    """Name the job that a pod is of."""
    labels: dict[str, str] = pod["metadata"].get("labels") or {}
    return labels.get("batch.kubernetes.io/job-name", "")


def index_of(pod: Manifest) -> int:
    """Return a pod's completion index."""
    annotations = pod["metadata"].get("annotations") or {}
    return int(annotations.get(INDEX_ANNOTATION, "0"))


def has_started(pod: Manifest) -> bool:
    """Whether a pod's container has run."""
    state = _container(pod)
    return "running" in state or "terminated" in state


def is_ready(pod: Manifest) -> bool:
    """Whether a pod's node says that it is ready; that of a lost node is not."""
    ready = _condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def has_stopped(pod: Manifest) -> bool:
    """Whether a pod's container has ended; the pod itself does so a little later."""
    return has_ended(pod) or "terminated" in _container(pod)


def has_ended(pod: Manifest) -> bool:
    """Whether a pod has ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def pod_end(pod: Manifest) -> PodEnd | None:
    """Say how a pod failed; None while it has not."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    terminated = _container(pod).get("terminated", {})
    code = terminated.get("exitCode")
    fault, cause, fix = _cause(pod, terminated, code)
    message = terminated.get("message") or status.get("message") or ""
    disruption = _condition(pod, "DisruptionTarget") is not None
    name, index = pod["metadata"]["name"], index_of(pod)
    return PodEnd(name, index, code, cause, fault, fix, message, disruption)


def crash_of_pod(pod: Manifest) -> str | None:
    """Say how a pod's worker crashed by itself; None where it did not, or the cluster ended it."""
    end = pod_end(pod)
    if end is None or end.was_disrupted or pod["status"].get("reason") == "Evicted":
        return None
    is_out_of_memory = _container(pod).get("terminated", {}).get("reason") == "OOMKilled"
    # A container tells a signal by 128 and its number.
    code = SIGNAL_CODES - end.code if end.code is not None and end.code > SIGNAL_CODES else 0
    return OUT_OF_MEMORY if is_out_of_memory else crash_of(code, ran_out_of_memory=False)


def _cause(
    pod: Manifest, terminated: Manifest, code: int | None
) -> tuple[type[HvkfError], str, str]:
    """Find the fault, its cause, and the fix where there is one."""
    reason = terminated.get("reason", "")
    disruption = _condition(pod, "DisruptionTarget")
    if reason == "OOMKilled":
        return OutOfMemory, "used more memory than it has", "raise memory, or lower the batch size"
    if pod["status"].get("reason") == "Evicted":
        evicted = pod["status"].get("message", "evicted by its node")
        fix = "raise ephemeral_storage" if "storage" in evicted else "raise memory"
        return BadInput, f"was evicted ({evicted.rstrip('. ')})", fix
    if disruption is not None and disruption["status"] == "True":
        why = DISRUPTIONS.get(disruption.get("reason", ""), "ended by the cluster")
        return TryAgain, f"was {why}", ""
    if reason in COMMAND_REASONS or code in (126, 127):
        fix = "use an image that docker/ builds, which has the command hvkf"
        return BadInput, "could not run its command", fix
    if code == BAD_INPUT_CODE:
        return BadInput, "found input that it cannot use", ""
    if code in (None, KILLED_CODE):
        return Killed, "was killed", ""
    if code == STOPPED_CODE:
        return TryAgain, "was told to stop", ""
    if code == TRY_AGAIN_CODE:
        return TryAgain, "met a fault that may pass", ""
    return HvkfError, f"ended with exit code {code}", ""


def blocked(pod: Manifest, stage: str) -> Blocked | None:
    """Say what keeps a pod from starting, and the fix."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        message = scheduled.get("message", "")
        fix = _scheduling_fix(message, stage)
        what = f"no node takes a pod of {stage}"
        return _block(what, _first_sentence(message), fix, is_final=False)
    waiting = _container(pod).get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in IMAGE_REASONS:
        image = pod["spec"]["containers"][0]["image"]
        final = reason in ("ErrImageNeverPull", "InvalidImageName")
        final = final or any(word in message.lower() for word in IMAGE_NEVER)
        fix = f"push it, or set jobs.cluster.image (jobs.{stage}.image), or give the service "
        return _block(
            f"the image {image} of {stage} cannot be had",
            f"{reason}: {message or 'no details'}",
            fix + "account its pull secret",
            is_final=final,
        )
    if reason == "CreateContainerConfigError":
        fix = "create it, or set jobs.cluster.s3_secret"
        return _block(f"a pod of {stage} cannot be set up", message, fix, is_final=True)
    if reason in COMMAND_REASONS:
        fix = "use an image that docker/ builds, which has the command hvkf"
        return _block(f"a pod of {stage} cannot start", message, fix, is_final=True)
    return None


def blocked_by_event(event: Manifest, stage: str) -> Blocked | None:
    """Say what keeps a job's pods from being made or mounted, and the fix."""
    reason, message = event.get("reason", ""), event.get("message", "")
    if reason == "FailedCreate":
        if (words := quota_words(message)) is not None:
            sentence = words.rstrip(".")
            # What is used changes from pod to pod.
            brief = re.sub(r" \(requested .*?\):", ":", sentence)
            return Blocked(sentence, exceeds_whole_quota(message), brief)
        if "serviceaccount" in message and "not found" in message:
            fix = "apply k8s/base, or set jobs.cluster.service_account"
            return _block(f"pods of {stage} have no service account", message, fix, is_final=True)
        if "violates PodSecurity" in message:
            fix = f"jobs.{stage}.pod_patch must keep to the restricted Pod Security Standard"
            return _block(f"pods of {stage} are refused", message, fix, is_final=True)
        fix = "`kubectl get events` says more"
        return _block(f"pods of {stage} cannot be created", message, fix, is_final=False)
    if reason in ("FailedMount", "FailedAttachVolume"):
        fix = "check jobs.cluster.cache_claim, and volumes of pod_patch"
        return _block(f"a volume of {stage} cannot be mounted", message, fix, is_final=False)
    return None


def _scheduling_fix(message: str, stage: str) -> str:
    fixes = []
    for resource in dict.fromkeys(re.findall(r"Insufficient ([\w./-]*\w)", message)):
        if "gpu" in resource:
            fixes.append(
                f"add a node with that many free {resource}, or lower jobs.{stage}.gpus_per_pod"
            )
        else:
            name = {"ephemeral-storage": "ephemeral_storage"}.get(resource, resource)
            fixes.append(f"add nodes, or lower jobs.{stage}.{name}")
    if "affinity" in message or "node selector" in message:
        fixes.append(f"check jobs.{stage}.node_selector against `kubectl get nodes --show-labels`")
    if taint := re.search(r"untolerated taint\(?s?\)? \{([^}:]+)", message):
        fixes.append(f"add {taint[1]!r} to jobs.{stage}.tolerations")
    if "persistentvolumeclaim" in message:
        fixes.append("create the claim that jobs.cluster.cache_claim names")
    return "; ".join(fixes) or "`kubectl describe pod` says more"


def _first_sentence(message: str) -> str:
    """Leave out what the scheduler says about preemption."""
    return re.split(r"\.? (?:no new claims|preemption:)", message)[0].rstrip(". ")


def _condition(pod: Manifest, kind: str) -> Manifest | None:
    found: list[Manifest] = [
        condition
        for condition in pod.get("status", {}).get("conditions") or ()
        if condition["type"] == kind
    ]
    return found[0] if found else None


def _container(pod: Manifest) -> dict[str, Any]:
    """Return the state of a pod's main container; sidecars do not count."""
    for status in pod.get("status", {}).get("containerStatuses") or ():
        if status["name"] == CONTAINER:
            state: dict[str, Any] = status.get("state") or {}
            return state
    return {}
