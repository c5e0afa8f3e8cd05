"""Drill: each stage on a device that is really full ends with its sentence, and goes on later."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvkf.cli import STAGES
from hvkf.config import Config
from hvkf.storage import open_store
from hvkf.verify import verify_workspace
from tests.whole_workspace import run_here, whole_config

pytestmark = [pytest.mark.slow, pytest.mark.lengthy, pytest.mark.timeout(1800)]

FREE_BYTES = 40 << 10
"""Enough to plan, too little for what a stage makes."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A device of 20 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this process may not mount a small device")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, free: int) -> Path:
    room = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - free))
    return filler


def ended(stage: str, config: Config, file: Path) -> subprocess.CompletedProcess[str]:
    file.write_text(config.model_dump_json())  # JSON is YAML
    words = ["submit", str(config.render.manifest), "--yes"] if stage == "submit" else [stage]
    return subprocess.run(
        [sys.executable, "-m", "hvkf.cli", *words, "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_each_stage_says_that_the_disk_is_full_and_goes_on_when_it_is_not(
    disk: Path, tmp_path: Path
) -> None:
    config = whole_config(tmp_path).model_copy(update={"workspace": str(disk / "w")})
    store = open_store(config.workspace)
    for stage in [*list(STAGES)[:-1], "submit", "render"]:
        for free in (0, FREE_BYTES if stage != "ingest" else 4 << 10):
            filler = fill(disk, free)
            said = ended(stage, config, tmp_path / "config.yaml")
            filler.unlink()
            assert said.returncode == 65, f"{stage} with {free} bytes: {said}"
            sentence = said.stderr.strip().splitlines()[-1]
            assert sentence.startswith("error: No space left on the device of "), sentence
            assert verify_workspace(store).faults == [], f"{stage} with {free} bytes"
        if stage != "submit":  # which is what `render` goes on with
            run_here(stage, config, store)
    assert verify_workspace(store).faults == []
