"""Settings of where and how a stage's work runs: processes of this machine, or pods of a cluster.

Fields marked as deployed only (what a pod is, rather than how much of it) are taken from the
deployed configuration and never from a form: whoever may start a flow must not choose its image.
"""

import re
from typing import Any, Literal, Self

import jsonpatch
import jsonpointer
from pydantic import Field, ValidationError, field_validator, model_validator

from hvkf.settings.section import Section

DEPLOYED_ONLY: dict[str, Any] = {"deployed_only": True}
STAGES = ("ingest", "cache", "encode", "train", "evaluate", "render")
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
TOLERATION = r"^[A-Za-z0-9][-A-Za-z0-9_./]*(=[-A-Za-z0-9_.]*)?(:(NoSchedule|NoExecute))?$"


class StageJobs(Section):
    """How a stage's work is spread over processes, and what its pods are given."""

    executor: Literal["local", "kubernetes"] = Field(
        "local", description="Where: processes of this machine, or pods of a cluster."
    )
    workers: int = Field(
        1,
        ge=1,
        description="Processes or pods at a time (of train: ranks; on a cluster without GPUs, "
        "ranks of each pod).",
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads per process; left out: the machine's cores shared out."
    )
    max_attempts: int = Field(3, ge=1, description="Starts of a part that ends by a passing fault.")

    image: str | None = Field(
        None,
        min_length=1,
        description="Image of this stage's pods; left out: jobs.cluster.image.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    gpus_per_pod: int = Field(0, ge=0, description="GPUs of each pod (of train: its ranks).")
    nodes: int = Field(1, ge=1, description="Of train: pods that train together.")
    cpu: str = Field("2", pattern=QUANTITY, description="CPU cores that a pod asks for.")
    memory: str = Field("8Gi", pattern=QUANTITY, description="Memory that a pod gets at most.")
    memory_once_more: str | None = Field(
        None,
        pattern=QUANTITY,
        description="Memory of one more start where pods ran out of theirs; null: none is made.",
    )
    ephemeral_storage: str = Field(
        "20Gi", pattern=QUANTITY, description="Disk that a pod gets: shard cache, scratch files."
    )
    shm_size: str = Field(
        "2Gi", pattern=QUANTITY, description="Size of /dev/shm; it counts as memory."
    )
    queue: str | None = Field(
        None, pattern=DNS_NAME, description="Kueue's LocalQueue; left out: jobs start at once."
    )
    priority_class: str | None = Field(
        None, pattern=DNS_NAME, description="PriorityClass of the pods (and of Kueue's workload)."
    )
    spot: bool = Field(False, description="Tolerate the clouds' taints of spot nodes.")
    tolerations: tuple[str, ...] = Field(
        (), description="Taints to tolerate besides, as key[=value][:effect]."
    )
    node_selector: dict[str, str] = Field({}, description="Labels that a pod's node must have.")
    start_timeout_s: float = Field(
        1800, gt=0, description="Seconds for pods to start; time in a queue does not count."
    )
    deadline_s: int | None = Field(
        None, ge=1, description="Seconds that a job may run at most; left out: no limit."
    )
    grace_s: int = Field(
        120, ge=10, description="Seconds that a pod has to save its work when told to stop."
    )
    stall_s: float = Field(
        1800,
        gt=0,
        description="Of train: seconds without a word from any one pod that end an attempt.",
    )
    max_restarts: int = Field(
        10, ge=0, description="Of train on a cluster: further attempts, from the last checkpoint."
    )
    env: dict[str, str] = Field(
        {}, description="Environment variables of the pods.", json_schema_extra=DEPLOYED_ONLY
    )
    pod_patch: tuple[dict[str, Any], ...] = Field(
        (),
        description="JSON Patch (RFC 6902) on the pod template, for what a cluster needs besides.",
        json_schema_extra=DEPLOYED_ONLY,
    )

    @property
    def ranks_per_pod(self) -> int:
        """Ranks of a training pod: one per GPU, or `workers` where there is none."""
        return self.gpus_per_pod or self.workers

    @property
    def num_ranks(self) -> int:
        """Ranks that train together."""
        return self.nodes * self.ranks_per_pod if self.executor == "kubernetes" else self.workers

    @field_validator("tolerations")
    @classmethod
    def _are_taints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for taint in value:
            if not re.match(TOLERATION, taint):
                raise ValueError(
                    f"{taint!r} is not a taint: write key, key=value or key=value:NoSchedule"
                )
        return value

    @field_validator("pod_patch")
    @classmethod
    def _is_json_patch(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, operation in enumerate(value):
            try:
                jsonpatch.JsonPatch([operation])
                if operation["op"] in ("add", "replace", "test") and "value" not in operation:
                    raise jsonpatch.InvalidJsonPatch("it has no value")
            except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as fault:
                raise ValueError(
                    f"operation {number} is not of a JSON Patch ({fault}): write "
                    "{op: add, path: /spec/..., value: ...}"
                ) from None
        return value


def _given(jobs: StageJobs) -> dict[str, Any]:
    return {name: getattr(jobs, name) for name in jobs.model_fields_set}


class ClusterJobs(Section):
    """What the jobs of all stages share on a Kubernetes cluster; of the deployed settings only."""

    image: str | None = Field(
        None,
        min_length=1,
        description="Image of all stages' pods that name no other.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    namespace: str | None = Field(
        None,
        pattern=DNS_NAME,
        description="Namespace; left out: that of this pod, or of the context, or hvkf.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    context: str | None = Field(
        None,
        description="Context of the kubeconfig; left out: the pod's own service account, or the "
        "current context.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    service_account: str = Field(
        "hvkf-job",
        pattern=DNS_NAME,
        description="ServiceAccount of the pods; they get no Kubernetes API token of it.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    s3_secret: str | None = Field(
        None,
        pattern=DNS_NAME,
        description="Secret whose keys are the AWS variables; left out: workload identity.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    cache_claim: str | None = Field(
        None,
        pattern=DNS_NAME,
        description="PersistentVolumeClaim for downloaded models, shared by pods; left out: each "
        "pod has a cache of its own.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    gang_service: str = Field(
        "hvkf-gang",
        pattern=DNS_NAME,
        description="Headless Service behind which training pods find each other.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    gpu_resource: str = Field(
        "nvidia.com/gpu",
        description="Name of a GPU among a node's resources.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    api_outage_s: float = Field(
        600,
        gt=0,
        description="Seconds without an answer of the Kubernetes API to ride out.",
        json_schema_extra=DEPLOYED_ONLY,
    )
    lease_s: float = Field(
        900,
        gt=0,
        description="Seconds that a job outlives its last owner's last word.",
        json_schema_extra=DEPLOYED_ONLY,
    )

    @model_validator(mode="after")
    def _lease_outlasts_an_outage(self) -> Self:
        if self.lease_s <= self.api_outage_s:
            raise ValueError(
                f"lease_s={self.lease_s:g} must be more than api_outage_s={self.api_outage_s:g}, "
                "or jobs are deleted while their flows ride an outage out"
            )
        return self


class JobsConfig(Section):
    """How each stage's work is spread over processes."""

    cluster: ClusterJobs = ClusterJobs()
    ingest: StageJobs = Field(
        StageJobs(),
        description="How ingest's looks at videos are spread; each setting left out: as cache's.",
    )
    cache: StageJobs = StageJobs()
    encode: StageJobs = StageJobs()
    train: StageJobs = StageJobs()
    evaluate: StageJobs = StageJobs()
    render: StageJobs = StageJobs()

    @model_validator(mode="before")
    @classmethod
    def _ingest_runs_as_cache_does(cls, value: Any) -> Any:
        """Both decode videos on CPUs, and need what an image without PyTorch lacks."""
        if not isinstance(value, dict):
            return value
        try:
            cache = StageJobs.model_validate(value.get("cache", {}))
            ingest = StageJobs.model_validate(value.get("ingest", {}))
        except ValidationError:  # told where the fields are checked
            return value
        given = {**_given(cache), **_given(ingest)}
        return {**value, "ingest": StageJobs.model_validate(given)}

    @model_validator(mode="after")
    def _pods_have_an_image(self) -> Self:
        for stage in STAGES:
            jobs: StageJobs = getattr(self, stage)
            if jobs.executor == "kubernetes" and not (jobs.image or self.cluster.image):
                raise ValueError(
                    f"{stage} runs on Kubernetes without an image: set cluster.image, or "
                    f"{stage}.image"
                )
        return self
