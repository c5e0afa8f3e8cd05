"""What `hvkf gc` frees after changes: dropped buckets, other settings' latents, useless runs."""

import os
import time
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.errors import BadInput
from hvkf.garbage import (
    OTHER_LATENTS,
    REPLACED,
    Garbage,
    find_garbage,
    remove_garbage,
)
from hvkf.garbage_runs import ABANDONED, REFUSED
from hvkf.ledger_paths import numbered, segment_path
from hvkf.records import DatasetCommit, FileEntry, ItemEntry, Plan, SegmentRecord
from hvkf.registry import Candidate, keep_lora, promote
from hvkf.settings.evaluation import GateConfig
from hvkf.stages.evaluate_gate import DECISIONS, Decision, Outcome, Verdict
from hvkf.storage import FolderStore, file_sha256
from hvkf.training.cost import timings_folder
from hvkf.training.lineage import lineage_path
from hvkf.uses import close_plan
from tests.commands import run_command
from tests.finished_runs import write_run
from tests.test_garbage_interleavings import ROOT, check, commit, make

OLD_S = 40 * 24 * 3600.0


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def objects(store: FolderStore) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.list("scenes")}


def age(store: FolderStore, folder: str, age_s: float = OLD_S) -> None:
    """Make all that lies below a folder as old as that."""
    then_s = time.time() - age_s
    for path in store.list(folder):
        os.utime(store.root / path, (then_s, then_s))


def replace(store: FolderStore, dataset: str, *segments: str) -> None:
    """Commit a data set that consists of these segments alone."""

    def draft(previous: DatasetCommit | None) -> DatasetCommit:
        return ledger.empty_commit(dataset).model_copy(update={"segments": segments})

    ledger.commit_dataset(store, ROOT, dataset, draft)


def found(store: FolderStore, kind: str, unused_for_s: float = 0) -> list[str]:
    listed = find_garbage(store, 0, unused_for_s=unused_for_s).kinds()
    return [file.path for file in listed.get(kind, [])]


def removed(store: FolderStore, *also: str) -> set[str]:
    garbage = find_garbage(store, 0).only(set(also))
    return {file.path for file in remove_garbage(store, garbage)}


def test_segments_of_dropped_buckets_go_with_the_commits_that_list_them(
    store: FolderStore,
) -> None:
    for segment in ("a1", "b1"):
        make(store, segment)
    commit(store, "d", ("a1", "b1"))
    replace(store, "d", "b1")
    assert {Path(path).stem for path in found(store, REPLACED)} == {"a1", "index"}
    assert segment_path(ROOT, "a1") in removed(store)
    listed = [
        DatasetCommit.from_json(store.read(path)).segments
        for path in numbered(store, ledger.dataset_folder(ROOT, "d"))
    ]
    assert all("a1" not in segments for segments in listed)
    check(objects(store))
    latest = ledger.latest_dataset(store, ROOT, "d")
    assert latest is not None
    assert latest.segments == ("b1",)
    # A bucket that comes back is made again.
    assert ledger.missing_segments(store, ROOT, ["a1", "b1"]) == {"a1"}
    make(store, "a1")
    commit(store, "d", ("a1",))
    check(objects(store))


def test_what_was_replaced_a_moment_ago_is_left(store: FolderStore) -> None:
    for segment in ("a1", "b1"):
        make(store, segment)
    commit(store, "d", ("a1",))
    replace(store, "d", "b1")
    age(store, ROOT)
    for path in numbered(store, ledger.dataset_folder(ROOT, "d"))[-1:]:
        os.utime(store.root / path)
    assert find_garbage(store, 3600).files == ()
    age(store, ROOT)
    assert len(find_garbage(store, 3600).files) == 2


def test_another_data_sets_segments_stay(store: FolderStore) -> None:
    make(store, "a1")
    make(store, "b1")
    commit(store, "d", ("a1",))
    commit(store, "e", ("a1",))
    replace(store, "d", "b1")
    assert removed(store) == set()
    check(objects(store))


@pytest.mark.parametrize("stage", ["cache", "encode", "train", "evaluate"])
def test_what_an_open_plan_reads_or_builds_on_stays(store: FolderStore, stage: str) -> None:
    inputs = {
        "cache": {"root": ROOT, "dataset": "d", "number": 2},
        "encode": {"scenes": ROOT, "segments": ["a1"]},
        "train": {
            "sources": {"kind": "segments", "root": ROOT, "segments": ["a1"]},
            "run": {"run_id": "r"},
            "lora": {"run_id": None},
        },
        "evaluate": {
            "evaluation": {"scenes": ROOT, "pairs": [{"segment": "a1"}], "lora": {"run_id": "r"}}
        },
    }[stage]
    make(store, "a1")
    make(store, "b1")
    commit(store, "d", ("a1",))
    replace(store, "d", "b1")
    plan = Plan(stage=stage, digest="abc", config={}, inputs=inputs, parts=())
    ledger.put_plan(store, plan)
    assert removed(store) == set()
    close_plan(store, plan)
    assert segment_path(ROOT, "a1") in removed(store)


def make_latents(store: FolderStore, root: str) -> str:
    """Write and commit one latent segment; return its prefix."""
    prefix = f"{root}/32x32x5/5e90-c0"
    store.put(f"{prefix}/index.json", b"latents")
    record = SegmentRecord(
        segment_id="5e90",
        bucket="32x32x5",
        prefix=prefix,
        items=(ItemEntry(key="k", source_sha256="s", sha256="h"),),
        files=(FileEntry(name="index.json", sha256="h", size=7),),
        attempt="test",
    )
    ledger.put_segment(store, root, record)

    def draft(previous: DatasetCommit | None) -> DatasetCommit:
        return ledger.empty_commit("d").model_copy(update={"segments": ("5e90",)})

    ledger.commit_dataset(store, root, "d", draft)
    return prefix


def test_latents_of_other_settings_go_on_request_and_the_newest_settings_stay(
    store: FolderStore,
) -> None:
    old = make_latents(store, "latents/old")
    age(store, "latents/old", OLD_S)
    new = make_latents(store, "latents/new")
    assert found(store, OTHER_LATENTS, unused_for_s=50 * 24 * 3600.0) == []
    assert f"{old}/index.json" in found(store, OTHER_LATENTS)
    assert removed(store) == set(), "it was not asked for"
    assert f"{old}/index.json" in removed(store, OTHER_LATENTS)
    assert store.exists(f"{new}/index.json")
    assert ledger.latest_dataset(store, "latents/old", "d") is None
    assert ledger.latest_dataset(store, "latents/new", "d") is not None
    # Going back to those settings encodes again.
    assert ledger.missing_segments(store, "latents/old", ["5e90"]) == {"5e90"}
    assert removed(store, OTHER_LATENTS) == set()


def test_latents_that_were_committed_again_since_the_listing_stay(store: FolderStore) -> None:
    old = make_latents(store, "latents/old")
    age(store, "latents/old", OLD_S)
    make_latents(store, "latents/new")
    garbage = find_garbage(store, 0).only({OTHER_LATENTS})
    make_latents(store, "latents/old")
    assert remove_garbage(store, garbage) == []
    assert store.exists(f"{old}/index.json")
    assert ledger.latest_dataset(store, "latents/old", "d") is not None


def decide(store: FolderStore, run_id: str, outcome: Outcome) -> None:
    verdict = Verdict(outcome=outcome, reasons=("r",), against="b", against_version=0)
    decision = Decision(
        registry="house",
        evaluation=f"evals/{run_id}/step-00000004/x/metrics.json",
        lora_sha256="0" * 64,
        rule=GateConfig(),
        verdict=verdict,
        code_version="c",
        data_digest=None,
        config_digest=None,
    )
    store.put(f"{DECISIONS}/{run_id}.json", decision.to_json())


def test_abandoned_and_refused_runs_go_on_request_by_age_and_their_lineage_stays(
    store: FolderStore,
) -> None:
    for run_id in ("abandoned", "refused", "kept", "promoted", "unjudged"):
        write_run(store, run_id)
        store.put(lineage_path(run_id), b"{}")
    store.delete("runs/abandoned/result.json")
    decide(store, "refused", "keep")
    decide(store, "kept", "promote")
    decide(store, "promoted", "keep")
    file = store.root / "lora"
    file.write_bytes(b"lora")
    sha256 = file_sha256(file)
    keep_lora(store, file, sha256)
    file.unlink()
    candidate = Candidate(lora_sha256=sha256, origin="x", decided_by="me", run_id="promoted")
    promote(store, "house", candidate, over=0)
    assert found(store, ABANDONED, unused_for_s=3600.0) == []
    age(store, "runs")
    days = {"unused_for_s": 30 * 24 * 3600.0}
    assert {path.split("/")[1] for path in found(store, ABANDONED, **days)} == {"abandoned"}
    assert {path.split("/")[1] for path in found(store, REFUSED, **days)} == {"refused"}
    assert removed(store) == set()
    time = f"{timings_folder('refused')}/0.json"
    store.put(time, b"{}")
    age(store, "timings")
    assert {path.split("/")[1] for path in removed(store, REFUSED) - {time}} == {"refused"}
    assert not store.exists(time), "what a run took goes with it"
    assert list(store.list("runs/refused")) == [lineage_path("refused")]
    removed(store, ABANDONED, REFUSED)
    left = {path.split("/")[1] for path in store.list("runs") if path.endswith("/result.json")}
    assert left == {"kept", "promoted", "unjudged"}


def test_a_run_that_a_plan_trains_is_no_abandoned_one(store: FolderStore) -> None:
    write_run(store, "going")
    store.delete("runs/going/result.json")
    plan = Plan(
        stage="train",
        digest="abc",
        config={},
        inputs={
            "sources": {"kind": "mds"},
            "run": {"run_id": "going"},
            "lora": {"run_id": None},
        },
        parts=(),
    )
    ledger.put_plan(store, plan)
    assert found(store, ABANDONED) == []
    close_plan(store, plan)
    assert found(store, ABANDONED)


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(BadInput, match="'runs' is no kind to ask for: other-latents, abandoned"):
        Garbage((), frozenset(), ()).only({"runs"})


def test_the_command_lists_by_kind_with_sizes_and_says_what_goes_on_request(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    make(store, "a1")
    write_run(store, "abandoned")
    store.delete("runs/abandoned/result.json")
    age(store, "runs")
    place = ["--workspace", str(store.root), "--older-than-hours", "0"]
    run_command("gc", *place)
    said = capsys.readouterr().out
    assert "uncommitted: 2 objects, 0.0 MB: shards and segments that no commit lists\n" in said
    assert "abandoned-run: " in said
    assert "runs without a result (on request: --also abandoned-run)\n" in said
    assert said.splitlines()[-1] == "2 objects, 0.0 MB can go: --delete"
    run_command("gc", *place, "--delete", "--yes", "--also", "abandoned-run")
    capsys.readouterr()
    run_command("gc", *place)
    assert capsys.readouterr().out.splitlines()[1:] == ["0 objects, 0.0 MB can go: --delete"]
