"""A worker whose environment lacks a package says which, and is not started again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvkf.errors import BadInput
from hvkf.processes import missing_modules_told
from tests.jobs.running_cluster import ROOT
from tests.workspaces import small_config, write_dataset

ABSENT = "raise ModuleNotFoundError(\"No module named 'scenedetect'\", name='scenedetect')\n"
BROKEN = "raise ImportError('libGL.so.1: cannot open shared object file', name='scenedetect')\n"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (ABSENT, "the Python module 'scenedetect', which is not installed in"),
        (BROKEN, "cannot load the Python module 'scenedetect'"),
    ],
)
def test_a_worker_without_a_module_names_it_at_once(tmp_path: Path, module: str, said: str) -> None:
    config = small_config(tmp_path, write_dataset(tmp_path / "data", 1))
    (tmp_path / "config.yaml").write_text(config.model_dump_json(exclude_unset=True))
    lacking = tmp_path / "lacking"
    (lacking / "scenedetect").mkdir(parents=True)
    (lacking / "scenedetect" / "__init__.py").write_text(module)
    ended = subprocess.run(
        [sys.executable, "-m", "hvkf.cli", "ingest", "--config", str(tmp_path / "config.yaml")],
        env={**os.environ, "PYTHONPATH": f"{lacking}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == BadInput.exit_code
    assert "starting again" not in ended.stdout + ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stdout + ended.stderr
    assert line.startswith("error: `hvkf ingest run` ")
    assert said in line
    assert "docker/" in line


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), missing_modules_told("it"):
        1 / 0  # noqa: B018
