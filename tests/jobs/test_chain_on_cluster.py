"""The whole chain as jobs of a cluster, whose pods are `hvkf` itself, some of them disrupted."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.cli import stage_module
from hvkf.config import Config
from hvkf.jobs.run import run_plan
from hvkf.jobs.spec import Listener
from hvkf.media.writing import write_png
from hvkf.records import Summary
from hvkf.storage import Store, open_store
from hvkf.verify import verify_workspace
from hvkf.video import decode_frames
from tests.jobs.running_cluster import ROOT, RunningCluster
from tests.workspaces import small_config, write_dataset

CHAIN = ("ingest", "cache", "encode", "train", "evaluate", "render")
# Real pods see the workspace in S3; these see it as the folder that it is.
SEEN = {"op": "test", "path": "/spec/restartPolicy", "value": "Never"}


def chain_config(folder: Path) -> Config:
    metadata = write_dataset(folder / "data", 2)
    frames = decode_frames(folder / "data" / "videos" / "00000.mp4", [0, 4])
    for name, (_, frame) in zip(("a.png", "b.png"), frames, strict=True):
        write_png(folder / "data" / name, frame)
    pairs = "id,first_frame,last_frame,prompt\none,a.png,b.png,a square\ntwo,b.png,a.png,a disc\n"
    (folder / "data" / "pairs.csv").write_text(pairs)
    jobs = {"executor": "kubernetes", "threads": 1, "workers": 1, "pod_patch": [SEEN]}
    sections: dict[str, object] = {stage: dict(jobs) for stage in CHAIN[1:]}
    sections["train"] = {**jobs, "nodes": 2}  # a gang, whose members find each other
    sections["cluster"] = {"image": "image:1"}
    return small_config(
        folder,
        metadata,
        cache={"bucket_reso": ["32x32x5"]},
        render={"manifest": str(folder / "data" / "pairs.csv"), "rows_per_part": 1},
        jobs=sections,
    )


def run_on_cluster(stage: str, config: Config, store: Store, lines: list[str]) -> Summary:
    """Run a stage as its flow does: plan and commit here, parts as pods."""
    module = stage_module(stage)
    plan = module.plan(config, store)
    if plan.committed is None and plan.parts:
        ledger.put_plan(store, plan)
        if stage == "ingest":
            module.run(plan, store, plan.parts)
        else:
            run_plan(plan, store, Listener(lambda *_: None, lines.append), "flow-run")
    summary: Summary = module.commit(plan, store)
    return summary


def evict_first_pod(cluster: RunningCluster, stage: str) -> threading.Thread:
    """Evict a stage's first pod once it has spoken."""

    def evict() -> None:
        name = cluster.wait(
            lambda seen: next((name for name in seen.pods.running if f"hvkf-{stage}-" in name), "")
        )
        time.sleep(1.0)
        cluster.do(lambda seen: seen.pods.evict(name))

    thread = threading.Thread(target=evict)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_chain_runs_as_jobs_of_a_cluster(cluster: RunningCluster, tmp_path: Path) -> None:
    config = chain_config(tmp_path)
    store = open_store(config.workspace)
    lines: list[str] = []
    for stage in CHAIN:
        evicted = evict_first_pod(cluster, stage) if stage == "cache" else None
        summary = run_on_cluster(stage, config, store, lines)
        if evicted is not None:
            evicted.join()
        assert not summary.reused
    assert verify_workspace(store)[1] == []
    assert len([path for path in store.list("renders") if path.endswith(".mp4")]) == 2
    stages = [job["metadata"]["labels"]["hvkf/stage"] for job in cluster.jobs()]
    # Two parts and one worker: two renders one after the other, with room for others between.
    assert stages == [*CHAIN[1:], "render"]
    for job in cluster.jobs():
        kinds = [entry["type"] for entry in job["status"]["conditions"]]
        assert "Complete" in kinds, job["metadata"]["name"]
    assert any("2 ranks" in line for line in lines), "the members of the gang train together"
    again = [run_on_cluster(stage, config, store, lines).reused for stage in CHAIN]
    assert again == [True] * len(CHAIN)
    assert len(cluster.jobs()) == len(CHAIN)


def test_the_pods_command_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    """Whatever the chain above waits long for: a pod's words are those of `hvkf`."""
    command = [sys.executable, "-m", "hvkf.cli", "cache", "run", "--workspace", str(tmp_path)]
    command += ["--plan", "absent", "--parts", "0-3,7", "--index", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 65
    assert "error: " in ended.stderr
    assert json.dumps("absent").strip('"') in ended.stderr
