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
    assert sentences == ["# evaluate: 1 processes where the flow runs"]
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
