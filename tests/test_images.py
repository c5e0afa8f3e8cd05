"""The images: the flow image has what it needs, and PyTorch is no part of that."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.workspaces import small_config, write_dataset

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "diffusers", "transformers", "mosaicml-streaming", "opencv-python-headless"}
# Runs a command as if only the flow image's packages were installed.
PROGRAM = """
import importlib.metadata, sys
names = lambda lines: {line.partition("==")[0].lower().replace("_", "-") for line in lines}
kept = names(open("requirements-flow.lock").read().split()) | {"hvkf", "pip"}
absent = {
    module
    for module, owners in importlib.metadata.packages_distributions().items()
    if not kept & names(owners)
}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not in the flow image", name=name)

sys.meta_path.insert(0, Absent())
assert "torch" in absent and "prefect" not in absent
"""


def lock(name: str) -> dict[str, str]:
    """Read a lock file: names to versions."""
    pins = dict(line.split("==") for line in (ROOT / name).read_text().split())
    return {pin.lower().replace("_", "-"): version for pin, version in pins.items()}


def test_the_flow_images_packages_are_a_part_of_the_lock_without_torch() -> None:
    flow = lock("requirements-flow.lock")
    assert flow.items() <= lock("requirements.lock").items()
    assert not HEAVY & set(flow)
    assert not [name for name in flow if name.startswith("nvidia-")]


def test_the_flow_images_packages_have_all_that_they_need() -> None:
    flow = lock("requirements-flow.lock")
    for name in (*flow, "hvkf"):
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert needed.name.lower().replace("_", "-").replace(".", "-") in flow, (
                    f"{name} needs {needed}: run `make lock`"
                )


@pytest.mark.parametrize("image", ["flow", "gpu"])
def test_the_dockerfiles_copy_what_is_there_and_let_through(image: str) -> None:
    text = (ROOT / "docker" / f"{image}.Dockerfile").read_text()
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in let_through, source
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE)
    for pinned in re.findall(r"-r (\S+)", text):
        assert (ROOT / Path(pinned).name).exists()


def in_flow_image(program: str, standard_input: str = "") -> str:
    """Run a program with the flow image's packages only, and return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        cwd=ROOT,
        input=standard_input,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_flows_and_deployments_load_in_the_flow_image() -> None:
    program = "import flows.pipeline, flows.deploy, hvkf.storage_s3, prefect_kubernetes; print(1)"
    assert in_flow_image(program).split() == ["1"]


def test_ingest_is_planned_run_and_committed_in_the_flow_image(tmp_path: Path) -> None:
    config = small_config(tmp_path, write_dataset(tmp_path / "data", 2))
    program = (
        "import sys; from hvkf.cli import _planned, run_stage; "
        "from hvkf.config_file import check_config; from hvkf.storage import open_store; "
        "import yaml; config = check_config(yaml.safe_load(sys.stdin.read()), 'the test'); "
        "store = open_store(config.workspace); print(run_stage('ingest', config, store).text); "
        "print(_planned('cache', config, store))"
    )
    said = in_flow_image(program, config.model_dump_json())
    assert '"num_pending"' in said


def test_whatever_the_images_install_besides_their_lock_is_pinned() -> None:
    text = (ROOT / "docker" / "gpu.Dockerfile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    installed = re.findall(r'"([\w-]+)==\$\{(\w+)\}"', text)
    assert {name for name, _ in installed} == {"flash-attn", "ninja", "einops"}
    for _, argument in installed:
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)+(\.post[0-9]+)?", arguments[argument])
    assert not re.findall(r"--no-deps (?!-)\w", text), "a package without a version"
