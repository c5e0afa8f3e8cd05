"""kill -9 of rendering at any moment, the same command again, and the videos of a whole run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

# What the workers load, loaded once here: each drill forks a child.
import hvkf.stages.render_rows  # noqa: F401
from hvkf.config import Config
from hvkf.stages.render_claims import CLAIMS, ClaimRecord
from hvkf.stages.render_records import LEDGER
from hvkf.storage import FolderStore
from tests.drills.killing import PHASES, Moment, run_and_count, run_and_kill, stored_bytes
from tests.drills.test_kills import stage_work
from tests.stages.render_manifests import config_for, row, write_images, write_manifest

NUM_MOMENTS = 10
NUM_ROWS = 3
KILLED_AFTER = (1, 3)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = write_images(tmp_path / "pairs")
    return write_manifest(folder, [row(str(n), seed=n) for n in range(NUM_ROWS)])


def states(root: Path) -> list[str]:
    (table,) = root.glob("manifests/*/results.parquet")
    found: list[str] = pq.read_table(table)["state"].to_pylist()
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_render_killed_at_any_moment_ends_with_the_same_videos(
    manifest: Path, tmp_path: Path
) -> None:
    work = stage_work("render", config_for(manifest))
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    num_writes = run_and_count(undisturbed, work)
    expected = stored_bytes(undisturbed, ("renders",))
    assert len(expected) == 4 * NUM_ROWS
    moments = [Moment(write, phase) for write in range(num_writes) for phase in PHASES]
    for moment in random.Random("render").sample(moments, NUM_MOMENTS):
        root = tmp_path / f"{moment.write}-{moment.phase}"
        root.mkdir()
        run_and_kill(root, moment, work)
        run_and_count(root, work)
        assert stored_bytes(root, ("renders",)) == expected, moment
        assert states(root) == ["rendered"] * NUM_ROWS
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submit_killed_with_its_workers_goes_on_with_unfinished_rows_alone(
    tmp_path: Path, manifest: Path
) -> None:
    """The real command with two workers, killed twice when some rows have been recorded."""
    rows = [row(str(n), seed=n) for n in range(8)]
    manifest = write_manifest(manifest.parent, rows)
    config = Config.model_validate(
        {
            **config_for(manifest, rows_per_part=2).model_dump(mode="json"),
            "jobs": {"render": {"workers": 2}},
        }
    )
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())
    store = FolderStore(Path(config.workspace))
    command = [sys.executable, "-m", "hvkf.cli", "submit", str(manifest), "--config", str(file)]
    command.append("--yes")
    before: dict[str, bytes] = {}
    for num_done in KILLED_AFTER:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and len(list(store.list(LEDGER))) < num_done:
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before = {path: store.read(path) for path in store.list(LEDGER)}
        assert num_done <= len(before) < len(rows)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert states(store.root) == ["rendered"] * len(rows)
    after = {path: store.read(path) for path in store.list(LEDGER)}
    assert {path: after[path] for path in before} == before
    for path in before:
        identity = Path(path).stem
        claims = [
            ClaimRecord.from_json(store.read(claim)) for claim in store.list(f"{CLAIMS}/{identity}")
        ]
        assert [claim.ended for claim in claims].count("done") <= 1
