"""What a cluster and its object storage have and lack for the jobs of a configuration."""

import uuid
from collections.abc import Callable, Iterator

from hvkf.config import Config
from hvkf.errors import AlreadyExists, HvkfError
from hvkf.jobs.kubernetes_access import Access
from hvkf.settings.jobs import STAGES, StageJobs
from hvkf.shown import counted
from hvkf.storage_s3 import S3Store

# What flows do on the cluster; k8s/base/access.yaml grants it.
NEEDS = {
    ("batch", "jobs"): ("create", "get", "list", "watch", "patch", "delete"),
    ("", "pods"): ("get", "list", "watch"),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list", "watch"),
}
CHECK_FOLDER = "doctor"


def examine_cluster(config: Config) -> Iterator[str]:
    """Yield a line for each thing looked at; `lacks` begins those that need doing.

    Objects that are written to the workspace for it are removed again.
    """
    try:
        access = Access(config.jobs.cluster)
    except HvkfError as fault:
        yield f"lacks   {fault}"
    else:
        try:
            yield from _api(config, access)
        except HvkfError as fault:
            yield f"lacks   {fault}"
        finally:
            access.close()
    yield from _storage(config.workspace)


def _stages(config: Config) -> dict[str, StageJobs]:
    """Map the stages that run on the cluster to their settings."""
    found = {stage: getattr(config.jobs, stage) for stage in STAGES}
    return {stage: jobs for stage, jobs in found.items() if jobs.executor == "kubernetes"}


def _api(config: Config, access: Access) -> Iterator[str]:
    yield f"has     Kubernetes {access.version()} at {access.host}, namespace {access.namespace}"
    stages = _stages(config)
    if not stages:
        yield "without a stage on the cluster: set jobs.STAGE.executor to kubernetes"
    yield from _rights(access)
    yield from _gpus(config, stages, access)
    yield from _queues(stages, access)
    service = config.jobs.cluster.gang_service
    found = access.headless_service(service)
    if found is None:
        yield f"without the right to read services: whether {service} is there is not known"
    elif found:
        yield f"has     the headless Service {service} for training pods"
    else:
        yield (
            f"lacks   a headless Service {service} in {access.namespace}: "
            "kubectl apply -k the overlay (k8s/base/jobs.yaml), or set jobs.cluster.gang_service"
        )


def _rights(access: Access) -> Iterator[str]:
    for (group, resource), verbs in NEEDS.items():
        missing = [verb for verb in verbs if not access.may(verb, group, resource)]
        if missing:
            yield (
                f"lacks   the right to {', '.join(missing)} {resource} in {access.namespace}: add "
                f'{{apiGroups: ["{group}"], resources: [{resource}], '
                f"verbs: [{', '.join(missing)}]}} to the Role (k8s/base/access.yaml)"
            )
        else:
            yield f"has     the right to {', '.join(verbs)} {resource}"


def _gpus(config: Config, stages: dict[str, StageJobs], access: Access) -> Iterator[str]:
    resource = config.jobs.cluster.gpu_resource
    most = max((jobs.gpus_per_pod for jobs in stages.values()), default=0)
    nodes = access.node_gpus(resource)
    if nodes is None:
        yield "without the right to list nodes: whether there are GPUs is not known"
        return
    largest = max(nodes.values(), default=0)
    total = sum(nodes.values())
    if largest < most:
        yield (
            f"lacks   a node with {most} {resource} (the largest has {largest}): set gpus_per_pod "
            "to what a node has, or see to the device plugin"
        )
    elif total or not most:
        num_nodes = sum(count > 0 for count in nodes.values())
        yield f"has     {total} {resource} on {num_nodes} of {counted(len(nodes), 'node')}"


def _queues(stages: dict[str, StageJobs], access: Access) -> Iterator[str]:
    for name in sorted({jobs.queue for jobs in stages.values() if jobs.queue is not None}):
        found = access.queue(name)
        if found is None:
            yield f"without the right to read queues: whether {name} is there is not known"
        elif found:
            yield f"has     the queue {name}"
        else:
            yield (
                f"lacks   a LocalQueue {name} in {access.namespace}: install Kueue and apply "
                "k8s/components/kueue, or leave jobs.STAGE.queue out"
            )


def _storage(workspace: str) -> Iterator[str]:
    if not workspace.startswith("s3://"):
        yield f"without S3: pods see the workspace {workspace} only where pod_patch mounts it"
        return
    store = S3Store(workspace)
    path = f"{CHECK_FOLDER}/{uuid.uuid4().hex}"
    try:
        store.put_new(path, b"first")
        try:
            yield f"has     S3 that takes objects at {workspace}"
            yield from _conditions(store, path)
            if store.refuses_wrong_keys():
                yield "has     S3 that refuses wrong keys"
            else:
                yield "lacks   S3 that refuses wrong keys: anyone can read and write this bucket"
        finally:
            store.delete(path)
    except HvkfError as fault:
        yield f"lacks   {fault}"


def _conditions(store: S3Store, path: str) -> Iterator[str]:
    """Check that what must be refused is refused, and changes nothing."""
    tag = store.stat(path).tag
    if _is_refused(lambda: store.put_new(path, b"second")):
        yield "has     S3 with If-None-Match: records are written once"
    else:
        yield "lacks   S3 with If-None-Match: two workers could overwrite each other; use another"
    store.put(path, b"third")
    if _is_refused(lambda: store.replace(path, b"fourth", tag)):
        yield "has     S3 with If-Match: what another changed meanwhile is not overwritten"
    else:
        yield "lacks   S3 with If-Match: a LoRA's history could lose an entry; use another service"


def _is_refused(write: Callable[[], None]) -> bool:
    try:
        write()
    except AlreadyExists:
        return True
    return False
