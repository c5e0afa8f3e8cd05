"""Odd paths of videos in a metadata table, through ingest's own functions."""

import csv
import io
import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf.config import Config
from hvkf.config_file import check_config
from hvkf.stages import ingest
from hvkf.stages.ingest_records import VideoTask
from hvkf.stages.ingest_scan import scan_video
from hvkf.storage import FolderStore
from tests.fuzz.bounds import fuzzed, in_bounds
from tests.workspaces import write_clip

names = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["..", ".", "a.mp4", "loop", "pipe.mp4", "folder", "text.mp4", "~", "x" * 256, "é" * 130]
)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_clip(folder / "a.mp4", 1, num_frames=5)
    (folder / "text.mp4").write_text("no video")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe.mp4")
    return folder


def config_of(folder: Path, rows: list[str]) -> Config:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["video_file", "caption"], *([path, "x"] for path in rows)])
    table = folder / "metadata.csv"
    table.write_bytes(text.getvalue().encode(errors="replace"))
    settings = {"metadata": str(table), "find_near_duplicates": False}
    return check_config({"workspace": str(folder / "workspace"), "ingest": settings}, "the test")


@fuzzed(480)
@given(rows=st.lists(paths, min_size=1, max_size=4))
@example(rows=["a.mp4/x.mp4"])
@example(rows=["x" * 256 + ".mp4"])
@example(rows=["x" * 5000])
@example(rows=["pipe.mp4", "loop", "folder"])
@example(rows=["folder/../a.mp4"])
@example(rows=["a.mp4/"])
def test_an_odd_path_is_the_failure_of_its_own_row(folder: Path, rows: list[str]) -> None:
    with in_bounds(max_message=1500):  # the table's own check names up to ten rows
        config = config_of(folder, ["a.mp4", *rows])
        plan = ingest.plan(config, FolderStore(folder / "workspace"))
        sources = FolderStore(folder)
        for part in plan.parts:
            for task in map(VideoTask.model_validate, part.work["tasks"]):
                scan = scan_video(task, "", config.ingest, sources)
                is_good = posixpath.basename(posixpath.normpath(task.source)) == "a.mp4"
                assert is_good or scan.failure is not None
                assert len(scan.failure.message if scan.failure else "") < 600
