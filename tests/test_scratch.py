"""Scratch folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvkf.scratch import make_scratch, scratch_folder


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_is_swept_and_what_others_use_stays(scratch: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = scratch / f"hvkf-segment-{dead.pid}-abc"
    others = [
        scratch / f"hvkf-segment-{os.getpid()}-abc",
        scratch / f"hvkf-train-{dead.pid}-abc",
        scratch / "hvkf-segment-notes",
    ]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "file").write_bytes(b"bytes")
    made = make_scratch("segment")
    assert list(made.iterdir()) == []
    assert not left.exists()
    assert all((other / "file").exists() for other in others)


def test_a_scratch_folder_is_gone_after_its_block_and_after_a_fault(scratch: Path) -> None:
    with scratch_folder("train") as folder:
        (folder / "file").write_bytes(b"bytes")
    assert not folder.exists()
    with pytest.raises(KeyError), scratch_folder("train"):
        raise KeyError
    assert list(scratch.iterdir()) == []
