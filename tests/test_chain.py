"""The chain: the same items by any number of workers, growth by segments, nothing twice."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hvkf import ledger
from hvkf.cli import STAGES, run_stage
from hvkf.config import Config
from hvkf.records import DatasetCommit, SegmentRecord, Summary
from hvkf.stages.cache import SCENES_ROOT
from hvkf.stages.encode import latents_root
from hvkf.stages.pictures import LABEL_HEIGHT, draw
from hvkf.stages.previews import HEIGHT
from hvkf.storage import FolderStore
from hvkf.verify import verify_workspace
from tests.workspaces import small_config, write_clip, write_dataset, write_table

DATA_STAGES = ("ingest", "cache", "encode")


def run_stages(config: Config, stages: tuple[str, ...] = DATA_STAGES) -> list[Summary]:
    return [run_stage(stage, config, FolderStore(Path(config.workspace))) for stage in stages]


def newest(config: Config, kind: str) -> tuple[DatasetCommit, list[SegmentRecord]]:
    """Read the newest commit of the scenes or latents, and its segments."""
    store = FolderStore(Path(config.workspace))
    root = SCENES_ROOT if kind == "scenes" else latents_root(config, store)
    commit = ledger.latest_dataset(store, root, config.ingest.dataset)
    assert commit is not None
    return commit, [ledger.read_segment(store, root, segment) for segment in commit.segments]


def items(config: Config, kind: str) -> dict[str, str]:
    """Map the keys of the items that count to the sha256 of their columns."""
    commit, records = newest(config, kind)
    return {
        item.key: item.sha256
        for record in records
        for item in record.items
        if item.key not in commit.masked
    }


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", 3)


@pytest.mark.slow
def test_one_worker_and_three_make_the_same_bytes(tmp_path: Path, metadata: Path) -> None:
    found = []
    for workers in (1, 3):
        jobs = {stage: {"workers": workers} for stage in ("cache", "encode")}
        config = small_config(tmp_path / str(workers), metadata, jobs=dict(jobs))
        run_stages(config)
        commits = [newest(config, kind) for kind in ("scenes", "latents")]
        segments = [[(record.prefix, record.files) for record in records] for _, records in commits]
        found.append((items(config, "scenes"), items(config, "latents"), segments))
        store = FolderStore(Path(config.workspace))
        assert verify_workspace(store)[1] == []
    assert found[0] == found[1]
    assert found[0][0]


@pytest.mark.slow
def test_a_new_video_adds_one_and_a_removed_one_is_masked(tmp_path: Path, metadata: Path) -> None:
    config = small_config(tmp_path, metadata)
    first = run_stages(config)
    assert [summary.reused for summary in run_stages(config)] == [True, True, True]
    before = {kind: (newest(config, kind), items(config, kind)) for kind in ("scenes", "latents")}

    rows = [(f"A square moves, take {n}.", f"videos/{n:05d}.mp4") for n in range(3)]
    write_clip(metadata.parent / "videos" / "new.mp4", seed=77)
    write_table(metadata.parent, [("new", "videos/new.mp4"), *rows])
    summaries = run_stages(config)
    assert summaries[0].counts["clips"] == first[0].counts["clips"] + 1
    for kind in ("scenes", "latents"):
        (_, old_segments), old_items = before[kind]
        _, segments = newest(config, kind)
        assert segments[: len(old_segments)] == old_segments, "old segments are left alone"
        added = {item.source_sha256 for new in segments[len(old_segments) :] for item in new.items}
        assert len(added) == 1
        assert old_items.items() < items(config, kind).items()

    write_table(metadata.parent, rows[1:])
    run_stages(config)
    for kind in ("scenes", "latents"):
        (_, old_segments), old_items = before[kind]
        commit, segments = newest(config, kind)
        assert set(commit.masked)
        assert len(items(config, kind)) == len(old_items) * 2 // 3
        assert {s.segment_id for s in segments} <= {s.segment_id for s in old_segments}

    write_table(metadata.parent, rows)
    run_stages(config)
    for kind in ("scenes", "latents"):
        assert items(config, kind) == before[kind][1], (
            "what came back is taken from the old segments"
        )


def test_a_video_that_breaks_after_ingest_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, metadata: Path
) -> None:
    config = small_config(tmp_path, metadata, cache={"max_failed_fraction": 0.5})
    run_stages(config, ("ingest",))
    broken = metadata.parent / "videos" / "00001.mp4"
    shutil.copyfile(metadata.parent / "videos" / "00000.mp4", broken)
    (summary,) = run_stages(config, ("cache",))
    assert "videos/00001.mp4: 32x32x5: its bytes changed since ingest" in summary.text
    assert summary.counts == {"items": 4, "failed": 2, "segments": 2}


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_whole_chain_runs_as_one_flow_and_then_finds_everything_done(
    tmp_path: Path, metadata: Path
) -> None:
    pair = metadata.parent / "pairs.csv"
    from hvkf.media.writing import write_png
    from hvkf.video import decode_frames

    for name, (_, frame) in zip(
        ("a.png", "b.png"),
        decode_frames(metadata.parent / "videos" / "00000.mp4", [0, 4]),
        strict=True,
    ):
        write_png(metadata.parent / name, frame)
    pair.write_text("id,first_frame,last_frame,prompt\none,a.png,b.png,a square\n")
    config = small_config(tmp_path, metadata, render={"manifest": str(pair)})
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "hvkf.cli", "run", "--config", str(file)]
    for expected in (0, 6):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("done before") == expected
    assert list((tmp_path / "workspace" / "renders").rglob("*.mp4"))
    (metrics,) = (tmp_path / "workspace" / "evals").rglob("metrics.json")
    store = FolderStore(tmp_path / "workspace")
    picture, _ = draw("evaluate", metrics.relative_to(store.root).as_posix(), store)
    assert Image.open(io.BytesIO(picture)).size == (4 * HEIGHT, HEIGHT + LABEL_HEIGHT)
    for stage in STAGES:
        assert loaded_by_planning(stage, file) == "[]"


def loaded_by_planning(stage: str, config: Path) -> str:
    """Plan a stage that is done, and list what it should not have loaded."""
    program = (
        "import sys; from pathlib import Path; from hvkf.cli import _planned; "
        "from hvkf.config_file import load_config; from hvkf.storage import open_store; "
        f"config = load_config(Path({str(config)!r})); "
        f"_planned({stage!r}, config, open_store(config.workspace)); "
        "print([name for name in ('torch', 'streaming') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return ended.stdout.strip()
