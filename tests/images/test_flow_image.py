"""What runs in the flow image runs with the flow image's packages: no PyTorch, no OpenCV."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvkf.config import Config
from tests.images.flow_environment import ROOT, flow_environment, flow_python
from tests.jobs.running_cluster import running_cluster, use_kubeconfig
from tests.s3_server import S3Service
from tests.test_chain_s3 import lay_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ABSENT = ("torch", "cv2", "scenedetect", "streaming", "diffusers", "transformers")
PICTURED = ("cache", "train", "evaluate", "render")
LARGEST_READ_BYTES = 1 << 20
FLOW_MODULES = sorted(
    f"flows.{file.stem}" for file in (ROOT / "flows").glob("*.py") if file.stem != "__init__"
)


class FlowImage:
    """Runs `hvkf` as a flow's pod does."""

    def __init__(self, folder: Path) -> None:
        self.python = flow_python()
        self.cache = folder / "flow-cache"
        self.folder = folder

    def run(self, *command: str, given: str = "") -> str:
        """Run a Python command, and return what it printed."""
        ended = subprocess.run(
            [self.python, *command],
            input=given,
            env=flow_environment(
                self.folder, XDG_CACHE_HOME=str(self.cache), HOME=str(self.folder)
            ),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{command}: {(ended.stdout + ended.stderr)[-3000:]}"
        return ended.stdout

    def hvkf(self, *arguments: str, given: str = "") -> str:
        return self.run("-m", "hvkf.cli", *arguments, given=given)


@pytest.fixture
def image(tmp_path: Path) -> FlowImage:
    return FlowImage(tmp_path)


@pytest.fixture
def config(s3: S3Service, tmp_path: Path) -> Config:
    """Lay sources and the tiny checkpoint out in S3: a workspace that a cluster shares."""
    return lay_out(tmp_path, s3.new_url())


def run_as_pod(stage: str, planned: dict[str, Any]) -> None:
    """Run a plan's parts with the packages of the GPU image."""
    command = [sys.executable, "-m", "hvkf.cli", stage, "run"]
    command += ["--workspace", planned["workspace"], "--plan", planned["plan"]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]


def test_the_environment_is_that_of_the_image(image: FlowImage) -> None:
    program = (
        "import importlib, importlib.util, json\n"
        f"print(json.dumps([name for name in {ABSENT} if importlib.util.find_spec(name)]))\n"
        f"for name in {FLOW_MODULES}: importlib.import_module(name)\n"
        "import hvkf.storage_s3, hvkf.jobs.cluster"
    )
    assert json.loads(image.run("-c", program).splitlines()[0]) == []
    assert "has     prefect" in image.hvkf("doctor")


def test_every_stage_is_planned_committed_and_pictured_there(
    image: FlowImage, config: Config
) -> None:
    settings = config.model_dump_json(exclude_unset=True)
    workspace = ("--workspace", config.workspace)
    for stage in ("ingest", "cache", "encode", "train", "evaluate", "render"):
        planned = json.loads(image.hvkf(stage, "plan", "--config", "-", given=settings))
        assert planned["num_pending"] > 0
        run_as_pod(stage, planned)
        plan = ("--plan", planned["plan"])
        summary = json.loads(image.hvkf(stage, "commit", *workspace, *plan))
        assert not summary["reused"]
        again = json.loads(image.hvkf(stage, "plan", "--config", "-", given=settings))
        assert again["num_pending"] == 0
        if stage in PICTURED:
            drawn = image.hvkf("picture", stage, summary["result"], *workspace)
            assert drawn.startswith("data:image/")
        if stage == "evaluate":
            command = ("gate", "--config", "-", "--evaluation", summary["result"])
            assert json.loads(image.hvkf(*command, given=settings))["verdict"]
    (image.folder / "config.json").write_text(settings)
    manifest = config.render.manifest
    assert manifest is not None
    quoted = image.hvkf("submit", manifest, "--config", "config.json", "--dry-run")
    assert "1 done before" in quoted or "0 to render" in quoted
    assert "tokenizer is not on this machine" not in quoted
    assert "are as they were written" in image.hvkf("verify", *workspace)
    image.hvkf("gc", *workspace)
    # Planning has read the checkpoint's tokenizer and a little of its weights, and kept nothing.
    kept = [file for file in image.cache.rglob("*") if file.is_file()]
    assert not [file for file in kept if file.stat().st_size > LARGEST_READ_BYTES]


def test_ingest_looks_at_videos_in_pods_of_the_gpu_image(
    image: FlowImage, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = config.model_dump(mode="json", exclude_unset=True)
    values["ingest"]["scene_split"] = "content"
    pod = {"executor": "kubernetes", "workers": 2, "threads": 1}
    values["jobs"] = {"ingest": pod, "cluster": {"image": "hvkf-gpu:local"}}
    (image.folder / "config.json").write_text(json.dumps(values))
    with running_cluster(tmp_path) as cluster:
        use_kubeconfig(tmp_path, cluster.address, monkeypatch)
        said = image.hvkf("ingest", "--config", "config.json")
        assert "2 clips of 2 videos" in said
        (job,) = cluster.jobs()
        assert job["metadata"]["labels"]["hvkf/stage"] == "ingest"
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "hvkf-gpu:local"
