"""The whole chain on s3://, its sources and checkpoint there as well; once more amid faults."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.cli import stage_module
from hvkf.config import Config
from hvkf.errors import CorruptData
from hvkf.media.writing import write_png
from hvkf.records import Summary
from hvkf.shards import Segment
from hvkf.stages.cache import SCENES_ROOT
from hvkf.storage import Store, open_folder, open_store
from hvkf.verify import verify_workspace
from hvkf.video import decode_frames
from tests.s3_faults import FaultyS3, faulty_s3, random_faults
from tests.s3_server import S3Service
from tests.workspaces import TINY, small_config, write_dataset

CHAIN = ("ingest", "cache", "encode", "train", "evaluate", "render")
JOBS = {stage: {"threads": 1} for stage in CHAIN[1:]}


def lay_out(folder: Path, url: str, num_videos: int = 2) -> Config:
    """Put videos, a manifest of pairs and the tiny checkpoint into S3; return the settings."""
    write_dataset(folder / "data", num_videos)
    frames = decode_frames(folder / "data" / "videos" / "00000.mp4", [0, 4])
    for name, (_, frame) in zip(("a.png", "b.png"), frames, strict=True):
        write_png(folder / "data" / name, frame)
    pairs = "id,first_frame,last_frame,prompt\none,a.png,b.png,a square\n"
    (folder / "data" / "pairs.csv").write_text(pairs)
    sources, workspace = open_folder(f"{url}/sources"), open_folder(f"{url}/workspace")
    for file in (folder / "data").rglob("*"):
        if file.is_file():
            sources.upload(file, file.relative_to(folder / "data").as_posix())
    for file in TINY.rglob("*"):
        if file.is_file():
            workspace.upload(file, f"models/tiny/{file.relative_to(TINY).as_posix()}")
    settings = small_config(
        folder,
        Path("unused"),
        model={"pretrained_model_name_or_path": "workspace:models/tiny"},
        ingest={"metadata": f"{url}/sources/metadata.csv"},
        cache={"bucket_reso": ["32x32x5"]},
        render={"manifest": f"{url}/sources/pairs.csv"},
        jobs=dict(JOBS),
    )
    return settings.model_copy(update={"workspace": f"{url}/workspace"})


@pytest.fixture
def config(s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lay_out(tmp_path, s3.new_url())


def run_here(stage: str, config: Config, store: Store) -> Summary:
    """Run a stage to its commit in this process, which has loaded PyTorch once."""
    module = stage_module(stage)
    plan = module.plan(config, store)
    if plan.committed is None and plan.parts:
        ledger.put_plan(store, plan)
        module.run(plan, store, plan.parts)
    summary: Summary = module.commit(plan, store)
    return summary


def test_the_whole_chain_runs_on_s3_and_a_flipped_bit_is_named(config: Config) -> None:
    store = open_store(config.workspace)
    summaries = [run_here(stage, config, store) for stage in CHAIN]
    assert not [summary.stage for summary in summaries if summary.reused]
    assert [run_here(stage, config, store).reused for stage in CHAIN] == [True] * len(CHAIN)
    assert [path for path in store.list("renders") if path.endswith(".mp4")]
    assert verify_workspace(store)[1] == []

    root = SCENES_ROOT
    commit = ledger.latest_dataset(store, root, config.ingest.dataset)
    assert commit is not None
    record = ledger.read_segment(store, root, commit.segments[0])
    shard = next(entry.name for entry in record.files if entry.name != "index.json")
    path = f"{record.prefix}/{shard}"
    data = bytearray(store.read(path))
    data[len(data) // 2] ^= 1
    store.put(path, bytes(data))
    with pytest.raises(CorruptData, match=f"The shard {store.url}/{path} has other bytes"):
        Segment(store, record, Path(os.environ["XDG_CACHE_HOME"]) / "fresh")[0]
    (fault,) = verify_workspace(store)[1]
    assert path in fault


@pytest.fixture
def proxy(s3: S3Service) -> Iterator[FaultyS3]:
    with faulty_s3(s3.address) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_chain_rides_out_faults_and_makes_the_same_bytes(
    config: Config, s3: S3Service, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of ten requests fail, and of conditional puts every fourth loses its answer."""
    hparams = config.hparams.model_copy(update={"max_train_steps": 2})
    config = config.model_copy(update={"hparams": hparams})
    proxy.rule = random_faults(0.6, seed=11)
    s3.use(monkeypatch, proxy.address)
    store = open_store(config.workspace)
    for stage in CHAIN:
        assert not run_here(stage, config, store).reused
    assert proxy.lost_conditional >= 2
    num_faults = sum(count for fault, count in proxy.counts.items() if fault is not None)
    assert num_faults > 0.5 * proxy.counts.total()

    s3.use(monkeypatch)
    store = open_store(config.workspace)
    assert verify_workspace(store)[1] == []
    assert [path for path in store.list("renders") if path.endswith(".mp4")]
    again = config.model_copy(update={"workspace": f"{config.workspace}-again"})
    calm = open_store(again.workspace)
    for path in store.list("models"):
        calm.put(path, store.read(path))
    for stage in ("ingest", "cache", "encode"):
        run_here(stage, again, calm)
    written = [path for root in ("scenes", "latents") for path in calm.list(root)]
    shards = [path for path in written if "/ledger/" not in path and "/commits/" not in path]
    assert shards
    for path in shards:  # each lies below a prefix that is named by its content
        assert store.read(path) == calm.read(path), path
