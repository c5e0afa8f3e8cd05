"""What a job is on Kubernetes: a Job's manifest, built from a job's description and nothing else.

Stages whose parts do not need each other become an Indexed Job, whose index counts in the job's
list of parts. Training becomes a gang: an Indexed Job whose pods are torchrun's nodes.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import jsonpatch
import jsonpointer

from hvkf.crashes import WORKER_VARIABLE
from hvkf.distributed import launch_command
from hvkf.errors import BadInput, ConfigError
from hvkf.jobs.spec import BAD_INPUT_CODE, KILLED_CODE, NORMAL_PRIORITY, UNKNOWN, JobSpec
from hvkf.ledger import ATTEMPT_VARIABLE
from hvkf.progress import PROGRESS_VARIABLE
from hvkf.shown import shown

CONTAINER = "main"
USER = 1000
PART_OF_LABEL = "app.kubernetes.io/name"
STAGE_LABEL = "hvkf/stage"
WORK_LABEL = "hvkf/work"
ATTEMPT_LABEL = "hvkf/attempt"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
# An annotation for each owner, so that owners renew and leave without overwriting each other.
OWNER_PREFIX = "owner.hvkf/"
INDEX_REFERENCE = "$(JOB_COMPLETION_INDEX)"
RENDEZVOUS_PORT = 29500
# How long before a pod's end its ranks are killed, so that their exit codes are still told.
GRACE_MARGIN_S = 15
KEPT_FINISHED_S = 86_400
MAX_PARTS = 100_000
PART_NUMBER = re.compile(r"[0-9]{1,9}")
SPOT_TAINTS = (
    "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
    "node.kubernetes.io/spot",
)
Manifest = dict[str, Any]


def build_manifest(job: JobSpec) -> Manifest:
    """Write the Job's manifest, without owners.

    Raises:
        ConfigError: the pod patch does not fit, or pods cannot see the workspace.
        BadInput: more parts than a Job can have.
    """
    check_workspace(job)
    labels = labels_of(job)
    manifest: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name, "labels": dict(labels), "annotations": {}},
        "spec": {
            "completionMode": "Indexed",
            **(_gang_spec(job) if job.is_gang else _parts_spec(job)),
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": KEPT_FINISHED_S,
            "template": _patched(job, {"metadata": {"labels": labels}, "spec": _pod_spec(job)}),
        },
    }
    if job.jobs.deadline_s is not None:
        manifest["spec"]["activeDeadlineSeconds"] = job.jobs.deadline_s
    if job.jobs.queue is not None:
        manifest["metadata"]["labels"][QUEUE_LABEL] = job.jobs.queue
        if job.priority != NORMAL_PRIORITY:
            manifest["metadata"]["labels"][PRIORITY_LABEL] = f"hvkf-{job.priority}"
        manifest["spec"]["suspend"] = True  # Kueue resumes it when there is room for all its pods
    return manifest


def check_workspace(job: JobSpec) -> None:
    """Refuse a workspace that pods cannot see.

    Raises:
        ConfigError: it is a folder, and nothing mounts it.
    """
    if "://" not in job.workspace and not job.jobs.pod_patch:
        raise ConfigError(
            f"The workspace {job.workspace!r} is a folder of this machine, which pods do not see: "
            f"set workspace to s3://bucket/prefix, or mount it by jobs.{job.stage}.pod_patch."
        )


def labels_of(job: JobSpec) -> dict[str, str]:
    """Label a job and its pods by what they do; none of these is Prefect's."""
    return {
        PART_OF_LABEL: "hvkf",
        STAGE_LABEL: job.stage,
        WORK_LABEL: job.work,
        ATTEMPT_LABEL: str(job.attempt),
    }


def write_numbers(numbers: Sequence[int]) -> str:
    """Write ascending numbers briefly: 0-3,7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def read_numbers(text: str, known: range) -> list[int]:
    """Read what `write_numbers` wrote.

    Raises:
        BadInput: it is anything else, or names parts that are not among the `known` ones.
    """
    chosen: set[int] = set()
    for item in text.split(","):
        low, dash, high = item.partition("-")
        if not all(PART_NUMBER.fullmatch(end) for end in ((low, high) if dash else (low,))):
            raise BadInput(f"{shown(text)} is no list of parts: write such as 0-3,7.")
        first, last = int(low), int(high if dash else low)
        if first > last:
            raise BadInput(f"{shown(item)} is no list of parts: write the smaller number first.")
        if first not in known or last not in known:
            there = f"parts 0 to {known[-1]}" if known else "no parts"
            raise BadInput(f"The plan has {there}, not {shown(item)}.")
        chosen.update(range(first, last + 1))
    return sorted(chosen)


def _parts_spec(job: JobSpec) -> Manifest:
    completions: int | str = UNKNOWN
    parallelism = job.jobs.workers
    if job.parts is not None:
        completions = len(job.parts)
        parallelism = min(parallelism, completions)
        if completions > MAX_PARTS:
            raise BadInput(
                f"{job.stage} has {completions} parts and a Kubernetes Job at most {MAX_PARTS}: "
                "make parts larger (segments_per_part, or rows of a part)."
            )
    return {
        "completions": completions,
        "parallelism": parallelism,
        "backoffLimitPerIndex": job.jobs.max_attempts - 1,
        "maxFailedIndexes": completions,
        "podFailurePolicy": {
            # The first that fits counts: a disrupted pod may have been killed as well.
            "rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    # What is killed is most often out of memory, and would be at every start. The
                    # waiting task sees why, and starts again what was killed for another reason.
                    "action": "FailIndex",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [BAD_INPUT_CODE, KILLED_CODE],
                    },
                },
            ]
        },
    }


def _gang_spec(job: JobSpec) -> Manifest:
    """All pods or none: the first that fails ends the Job, and the waiting task starts the next."""
    return {"completions": job.jobs.nodes, "parallelism": job.jobs.nodes, "backoffLimit": 0}


def pod_command(job: JobSpec) -> list[str]:
    """Write the command of a job's pods."""
    parts = UNKNOWN if job.parts is None else write_numbers(job.parts)
    arguments = [job.stage, "run", "--workspace", job.workspace, "--plan", job.plan]
    arguments += ["--parts", parts]
    if not job.is_gang:
        return ["hvkf", *arguments, "--index", INDEX_REFERENCE]
    if job.jobs.num_ranks == 1:
        return ["hvkf", *arguments]
    launched = launch_command(
        ["hvkf.cli", *arguments],
        num_processes=job.jobs.ranks_per_pod,
        num_nodes=job.jobs.nodes,
        node_rank=INDEX_REFERENCE,
        rendezvous=f"{job.name}-0.{job.cluster.gang_service}:{RENDEZVOUS_PORT}",
        shutdown_timeout_s=max(1, job.jobs.grace_s - GRACE_MARGIN_S),
    )
    return ["python", *launched[1:]]


def _pod_spec(job: JobSpec) -> Manifest:
    jobs, cluster = job.jobs, job.cluster
    spec: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": jobs.grace_s,
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The kernel drops SIGTERM for a container's first process until it asks for it.
        "shareProcessNamespace": True,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job)],
        "volumes": _volumes(job),
    }
    if job.is_gang:
        spec["subdomain"] = cluster.gang_service
    if jobs.node_selector:
        spec["nodeSelector"] = dict(jobs.node_selector)
    if tolerations := _tolerations(job):
        spec["tolerations"] = tolerations
    if jobs.priority_class is not None:
        spec["priorityClassName"] = jobs.priority_class
    return spec


def _container(job: JobSpec) -> Manifest:
    jobs, cluster = job.jobs, job.cluster
    requests = {
        "cpu": jobs.cpu,
        "memory": jobs.memory,
        "ephemeral-storage": jobs.ephemeral_storage,
    }
    limits = {"memory": jobs.memory, "ephemeral-storage": jobs.ephemeral_storage}
    if jobs.gpus_per_pod:
        limits[cluster.gpu_resource] = str(jobs.gpus_per_pod)
    container: Manifest = {
        "name": CONTAINER,
        "image": jobs.image or cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "command": pod_command(job),
        "env": [
            # A crash is noted under the pod's name; see `hvkf.crashes`.
            {"name": WORKER_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            *({"name": name, "value": value} for name, value in _environment(job).items()),
        ],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": "/cache"},
        ],
    }
    if cluster.s3_secret is not None:
        container["envFrom"] = [{"secretRef": {"name": cluster.s3_secret}}]
    return container


def _environment(job: JobSpec) -> dict[str, str]:
    """Set what a worker finds; the deployment's own variables win."""
    environment = {
        PROGRESS_VARIABLE: "lines",
        ATTEMPT_VARIABLE: job.name,
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": "/cache",
        "HF_HOME": "/cache/huggingface",
    }
    if job.jobs.threads is not None:
        environment["OMP_NUM_THREADS"] = str(job.jobs.threads)
    return {**environment, **job.jobs.env}


def _volumes(job: JobSpec) -> list[Manifest]:
    cache: Manifest = {"emptyDir": {"sizeLimit": job.jobs.ephemeral_storage}}
    if job.cluster.cache_claim is not None:
        cache = {"persistentVolumeClaim": {"claimName": job.cluster.cache_claim}}
    return [
        {"name": "tmp", "emptyDir": {"sizeLimit": job.jobs.ephemeral_storage}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.jobs.shm_size}},
        {"name": "cache", **cache},
    ]


def _tolerations(job: JobSpec) -> list[Manifest]:
    keys = [job.cluster.gpu_resource] if job.jobs.gpus_per_pod else []
    if job.jobs.spot:
        keys += SPOT_TAINTS
    return [
        *({"key": key, "operator": "Exists"} for key in keys),
        *(_toleration(taint) for taint in job.jobs.tolerations),
    ]


def _toleration(taint: str) -> Manifest:
    """Read key[=value][:effect]."""
    pair, _, effect = taint.partition(":")
    key, equals, value = pair.partition("=")
    toleration: Manifest = {"key": key, "operator": "Equal" if equals else "Exists"}
    if equals:
        toleration["value"] = value
    if effect:
        toleration["effect"] = effect
    return toleration


def _patched(job: JobSpec, template: Manifest) -> Manifest:
    """Apply the deployment's JSON Patch to the pod template."""
    for number, operation in enumerate(job.jobs.pod_patch):
        try:
            template = jsonpatch.apply_patch(template, [copy.deepcopy(operation)])
        except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as fault:
            raise ConfigError(
                f"jobs.{job.stage}.pod_patch: operation {number} ({operation['op']} "
                f"{operation['path']}) does not fit the pod template ({fault}): "
                "`hvkf run --dry-run` shows the template without it."
            ) from None
    return template
