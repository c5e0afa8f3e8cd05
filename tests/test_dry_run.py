"""A dry run prints every manifest, with question marks for what is not known yet."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hvkf.cli import run_stage
from hvkf.config import Config
from hvkf.settings.jobs import StageJobs
from hvkf.storage import FolderStore
from tests.commands import run_command
from tests.s3_server import S3Service
from tests.workspaces import small_config, write_dataset

MOUNT = [{"op": "add", "path": "/spec/volumes/-", "value": {"name": "ws", "emptyDir": {}}}]
POD = {"executor": "kubernetes", "pod_patch": MOUNT}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    jobs = {"cluster": {"image": "hvkf:1"}, "cache": POD, "encode": POD, "train": POD}
    return small_config(tmp_path, write_dataset(tmp_path / "data", 3), jobs=jobs)


def printed(
    config: Config, capsys: pytest.CaptureFixture[str], file: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return the printed manifests by stage, and the sentences about other stages."""
    file.write_text(config.model_dump_json(exclude_unset=True))
    capsys.readouterr()
    run_command("run", "--config", str(file), "--dry-run")
    text = capsys.readouterr().out
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest is not None]
    sentences = [line for line in text.splitlines() if line.startswith("#")]
    stages = [manifest["metadata"]["labels"]["hvkf/stage"] for manifest in manifests]
    return dict(zip(stages, manifests, strict=True)), sentences


def test_numbers_of_later_stages_are_question_marks(
    config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    manifests, sentences = printed(config, capsys, tmp_path / "c.yaml")
    assert list(manifests) == ["ingest", "cache", "encode", "train"]
    assert manifests["ingest"]["spec"]["completions"] == 1
    assert manifests["cache"]["metadata"]["name"] == "hvkf-cache-?-1"
    assert manifests["encode"]["spec"]["completions"] == "?"
    assert manifests["train"]["spec"]["completions"] == 1
    assert sentences == ["# evaluate: 1 process where the flow runs"]
    assert not Path(config.workspace).exists()


def test_what_is_known_is_planned(
    config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here = config.jobs.model_copy(update={"ingest": StageJobs()})
    run_stage(
        "ingest", config.model_copy(update={"jobs": here}), FolderStore(Path(config.workspace))
    )
    manifests, sentences = printed(config, capsys, tmp_path / "c.yaml")
    assert sentences[0] == "# ingest: done before"
    assert manifests["cache"]["spec"]["completions"] >= 1
    assert "?" not in manifests["cache"]["metadata"]["name"]
    assert manifests["encode"]["metadata"]["name"] == "hvkf-encode-?-1"
    assert not (Path(config.workspace) / "plans" / "cache").exists()


def test_no_key_is_printed(
    config: Config,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY")
    variables = {
        "HF_TOKEN": "hf_abcdefghijklmnopqrstuv",
        "WANDB_API_KEY": "0123456789abcdef0123",
        "PROXY": "http://user:hush-hush@proxy:3128",
        "EXTRA": "AKIAIOSFODNN7EXAMPLE",
        "SAME_AS_HERE": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        "NCCL_DEBUG": "INFO",
    }
    secret = {"name": "S3_SECRET", "value": "patched-in"}
    reference = {"name": "T", "valueFrom": {"secretKeyRef": {"name": "my-secret", "key": "token"}}}
    patch = [
        *MOUNT,
        {"op": "add", "path": "/spec/containers/0/env/-", "value": secret},
        {"op": "add", "path": "/spec/containers/0/env/-", "value": reference},
    ]
    jobs = config.model_dump()["jobs"]
    for stage in ("cache", "encode", "train"):
        jobs[stage] |= {"env": variables, "pod_patch": patch}
    config = Config.model_validate({**config.model_dump(exclude={"jobs"}), "jobs": jobs})
    manifests, _ = printed(config, capsys, tmp_path / "c.yaml")
    text = yaml.safe_dump(manifests)
    for value in [*list(variables.values())[:2], "hush", "AKIA", "wJalr", "patched-in"]:
        assert value not in text
    env = {entry["name"]: entry for entry in pod_env(manifests["train"])}
    assert env["NCCL_DEBUG"]["value"] == "INFO"
    assert env["HF_TOKEN"]["value"] == "(hidden)"
    assert env["T"] == reference


def pod_env(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = manifest["spec"]["template"]["spec"]["containers"][0]["env"]
    return env


def test_that_s3_is_read_is_said_before_it_is(
    s3: S3Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_dataset(tmp_path / "data", 1)
    run_command("run", f"--workspace={s3.new_url()}", f"--ingest.metadata={table}", "--dry-run")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("# reads s3://")
    assert first.endswith("to see what is done, and writes nothing")
