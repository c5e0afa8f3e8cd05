"""Manifests: compared whole with what is written down, and accepted by the API's own schema."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client
from pydantic import ValidationError

from hvkf.distributed import parse
from hvkf.errors import BadInput, ConfigError
from hvkf.jobs.manifest import build_manifest, read_numbers, write_numbers
from hvkf.jobs.spec import UNKNOWN, JobSpec
from hvkf.settings.jobs import ClusterJobs, StageJobs

GOLDEN = Path(__file__).parents[1] / "golden" / "manifests"
CLUSTER = ClusterJobs(image="registry.example/hvkf-gpu:1", s3_secret="hvkf-s3")
PATCH = (
    {"op": "add", "path": "/spec/hostNetwork", "value": True},
    {
        "op": "add",
        "path": "/spec/containers/0/env/-",
        "value": {"name": "NCCL_IB_HCA", "value": "mlx5"},
    },
)


def job(stage: str, cluster: ClusterJobs = CLUSTER, **jobs: Any) -> JobSpec:
    parts: tuple[int, ...] = (0,) if stage == "train" else (0, 1, 2, 7)
    return JobSpec(
        stage=stage,
        workspace="s3://bucket/prefix",
        plan="0123456789abcdef",
        parts=parts,
        attempt=1,
        jobs=StageJobs(executor="kubernetes", **jobs),
        cluster=cluster,
    )


JOBS = {
    "cache": job("cache", workers=3, cpu="4", memory="16Gi", threads=4),
    "encode-spot-queue": job(
        "encode",
        CLUSTER.model_copy(update={"cache_claim": "hvkf-models"}),
        workers=8,
        gpus_per_pod=1,
        queue="gpu",
        priority_class="low",
        spot=True,
        tolerations=("dedicated=video:NoSchedule", "maintenance"),
        node_selector={"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        deadline_s=86400,
        env={"HF_HUB_OFFLINE": "1"},
    ),
    "train-gang": job("train", nodes=2, gpus_per_pod=8, memory="512Gi", pod_patch=PATCH),
    "train-one-rank": job("train", gpus_per_pod=1, grace_s=60),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_manifest_is_the_one_written_down(name: str) -> None:
    written = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())
    assert build_manifest(JOBS[name]) == written


@pytest.mark.parametrize("name", JOBS)
def test_the_api_knows_every_field(name: str) -> None:
    manifest = build_manifest(JOBS[name])
    client.V1Job.model_validate(manifest)
    manifest["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Never"
    with pytest.raises(ValidationError):
        client.V1Job.model_validate(manifest)


@pytest.mark.parametrize("name", JOBS)
def test_pods_are_those_of_the_restricted_security_standard(name: str) -> None:
    spec = build_manifest(JOBS[name])["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert "ephemeral-storage" in container["resources"]["requests"]


@pytest.mark.parametrize("name", JOBS)
def test_no_label_is_prefects(name: str) -> None:
    manifest = build_manifest(JOBS[name])
    labels = {
        **manifest["metadata"]["labels"],
        **manifest["spec"]["template"]["metadata"]["labels"],
    }
    assert not [label for label in labels if label.startswith("prefect.io/")]


def test_the_names_of_pods_are_valid_host_names() -> None:
    for stage in ("cache", "encode", "train", "evaluate", "render"):
        name = job(stage).model_copy(update={"attempt": 9999}).name
        assert len(f"{name}-100000-abcde") <= 63


def test_a_gangs_command_is_one_that_the_launcher_reads() -> None:
    command = build_manifest(JOBS["train-gang"])["spec"]["template"]["spec"]["containers"][0][
        "command"
    ]
    assert command[:3] == ["python", "-m", "hvkf.distributed"]
    options = parse([word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in command[3:]])
    assert (options.processes, options.nodes, options.node_rank) == (8, 2, 1)
    assert options.rendezvous == f"{JOBS['train-gang'].name}-0.hvkf-gang:29500"
    assert options.shutdown_timeout == 105
    assert options.arguments[:3] == ["hvkf.cli", "train", "run"]


def test_what_an_earlier_stage_will_know_is_a_question_mark() -> None:
    unknown = JOBS["cache"].model_copy(update={"plan": UNKNOWN, "parts": None})
    manifest = build_manifest(unknown)
    assert manifest["metadata"]["name"] == "hvkf-cache-?-1"
    assert manifest["spec"]["completions"] == "?"
    assert manifest["spec"]["parallelism"] == 3
    command = manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--parts") + 1] == "?"


def test_a_patch_that_does_not_fit_is_named() -> None:
    wrong = job("encode", pod_patch=({"op": "remove", "path": "/spec/hostNetwork"},))
    with pytest.raises(ConfigError, match=r"jobs\.encode\.pod_patch: operation 0 \(remove"):
        build_manifest(wrong)


def test_a_folder_that_no_pod_sees_is_refused() -> None:
    local = job("encode").model_copy(update={"workspace": "/data/workspace"})
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        build_manifest(local)


def test_more_parts_than_a_job_can_have_are_refused() -> None:
    large = job("encode").model_copy(update={"parts": tuple(range(100_001))})
    with pytest.raises(BadInput, match="100001 parts"):
        build_manifest(large)


@given(st.sets(st.integers(0, 2000), min_size=1))
def test_numbers_are_read_as_they_were_written(numbers: set[int]) -> None:
    assert read_numbers(write_numbers(sorted(numbers)), range(2001)) == sorted(numbers)


@pytest.mark.parametrize("text", ["1,two", "", "-1", "1-", "1-2-3", "²", "9" * 5000, "2-1"])
def test_other_words_are_no_numbers(text: str) -> None:
    with pytest.raises(BadInput, match="is no list of parts") as caught:
        read_numbers(text, range(5))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["0-99999999", "5", "0,1,2,5-6"])
def test_parts_that_the_plan_lacks_are_not_all_counted_up(text: str) -> None:
    with pytest.raises(BadInput, match=f"The plan has parts 0 to 4, not '{text.split(',')[-1]}'"):
        read_numbers(text, range(5))
