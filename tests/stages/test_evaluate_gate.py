"""The gate: how often it errs on figures of known truth, and what it does to the registry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvkf.catalog import newest_catalog, read_clips
from hvkf.errors import BadInput
from hvkf.loras import Lora
from hvkf.registry import find_registered, read_registered
from hvkf.settings.evaluation import GateConfig
from hvkf.stages import ingest
from hvkf.stages.evaluate_gate import Decision, gate, judge
from hvkf.stages.evaluate_records import ClipFidelity, Mean, Means, Metrics, PairMetrics, Settings
from hvkf.stages.render_records import Fidelity
from hvkf.storage import FolderStore, object_sha256
from hvkf.training.lineage import TrainedOn, lineage_path, write_lineage
from tests.commands import run_command
from tests.finished_runs import write_run
from tests.workspaces import small_config, write_dataset

RULE = GateConfig(registry="house")


def clip_of(psnr_db: float) -> ClipFidelity:
    same = Fidelity(mse=0.01, psnr_db=psnr_db, ssim=0.9)
    return ClipFidelity(first=same, last=same, clip=same)


def metrics_of(lora: Any, base: Any, run_id: str = "new", sha256: str = "0" * 64) -> Metrics:
    """Make an evaluation in which pair n has these PSNRs with the LoRA and without."""
    mean = Mean(psnr_db=float(np.mean(lora)), pooled_psnr_db=0.0, ssim=0.9)
    means = Means(first=mean, last=mean, clip=mean)
    pairs = tuple(
        PairMetrics(
            key=f"pair-{number}",
            bucket="32x32x5",
            source=f"videos/{number:02d}.mp4",
            prompt="",
            lora=clip_of(float(with_lora)),
            base=clip_of(float(without)),
            ceiling=clip_of(40.0),
            files={},
        )
        for number, (with_lora, without) in enumerate(zip(lora, base, strict=True))
    )
    return Metrics(
        run_id=run_id,
        checkpoint="step-00000004",
        lora_sha256=sha256,
        settings=Settings(steps=2, guidance=6.0, seed=0, precision="fp32", models="m"),
        lora=means,
        base=means,
        ceiling=means,
        pairs=pairs,
        failures=(),
    )


def test_fewer_than_eight_common_videos_give_no_verdict() -> None:
    seven = metrics_of([30.0] * 7, [20.0] * 7)
    assert judge(RULE, seven, None, 0).outcome == "no-verdict"
    champion = metrics_of([20.0] * 7, [20.0] * 7)
    verdict = judge(RULE, metrics_of([30.0] * 12, [20.0] * 12), champion, 3)
    assert verdict.outcome == "no-verdict"
    assert "7 pairs of 7 source videos" in verdict.reasons[0]
    assert "evaluate.num_pairs" in verdict.reasons[0]


def test_many_pairs_of_few_videos_give_no_verdict() -> None:
    metrics = metrics_of([30.0] * 16, [20.0] * 16)
    pairs = tuple(
        pair.model_copy(update={"source_sha256": str(number % 4)})
        for number, pair in enumerate(metrics.pairs)
    )
    verdict = judge(RULE, metrics.model_copy(update={"pairs": pairs}), None, 0)
    assert verdict.outcome == "no-verdict"
    assert "16 pairs of 4 source videos" in verdict.reasons[0]
    assert "ingest.min_holdout" in verdict.reasons[0]


def test_other_settings_are_not_compared() -> None:
    champion = metrics_of([20.0] * 9, [20.0] * 9)
    other = champion.settings.model_copy(update={"steps": 50})
    verdict = judge(
        RULE,
        metrics_of([30.0] * 9, [20.0] * 9),
        champion.model_copy(update={"settings": other}),
        1,
    )
    assert verdict.outcome == "no-verdict"
    assert "other settings" in verdict.reasons[0]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "workspace")


def write_evaluation(store: FolderStore, run_id: str, psnr_db: float, scale: float) -> str:
    """Put a finished run and its evaluation, ten pairs of about this PSNR; return its path."""
    sha256 = object_sha256(store, write_run(store, run_id, scale=scale))
    jitter = np.linspace(-0.1, 0.1, 10)
    metrics = metrics_of(psnr_db + jitter, 20.0 - jitter, run_id, sha256)
    path = f"evals/{run_id}/metrics.json"
    store.put(path, metrics.to_json())
    return path


def test_better_is_promoted_worse_is_kept_out_and_both_decisions_are_recorded(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for run_id, psnr_db, scale in (("one", 25, 1.0), ("better", 27, 0.5), ("worse", 26, 0.25)):
        write_evaluation(store, run_id, psnr_db, scale)
    place = ["--workspace", str(store.root), "--gate.registry=house"]
    outcomes = []
    for run_id in ("one", "better", "worse", "better"):
        run_command("gate", *place, "--evaluation", f"evals/{run_id}")
        said = json.loads(capsys.readouterr().out)
        decision = Decision.from_json(store.read(said["decision"]))
        assert decision.evaluation == f"evals/{run_id}/metrics.json"
        outcomes.append((said["verdict"]["outcome"], said["version_in_use"]))
    assert outcomes == [("promote", 1), ("promote", 2), ("keep", 2), ("keep", 2)]
    in_use = read_registered(store, "house").in_use
    assert (in_use.run_id, in_use.decided_by) == ("better", "gate")
    assert in_use.evaluation == "evals/better/metrics.json"
    assert in_use.figures["gain_clip_psnr_db"] == pytest.approx(2.0)
    assert (
        "gain_clip_psnr_db" in store.read(f"registry/loras/{in_use.lora_sha256}/README.md").decode()
    )


def test_what_was_promoted_by_hand_cannot_be_compared_with(store: FolderStore) -> None:
    write_run(store, "by-hand", scale=0.1)
    run_command(
        *("registry", "promote", "house", "--workspace", str(store.root)),
        *("--lora", "run:by-hand"),
    )
    gated = gate(RULE, store, write_evaluation(store, "one", 25, 1.0))
    assert gated.verdict.outcome == "no-verdict"
    assert "promoted without an evaluation" in gated.verdict.reasons[0]
    assert read_registered(store, "house").in_use.version == 1


def test_an_evaluation_that_is_not_there_or_of_another_lora_is_refused(store: FolderStore) -> None:
    with pytest.raises(BadInput, match=r"no evaluation evals/none/metrics.json"):
        gate(RULE, store, "evals/none")
    path = write_evaluation(store, "one", 25, 1.0)
    write_run(store, "one", scale=0.3)
    with pytest.raises(BadInput, match="has another LoRA than"):
        gate(RULE, store, path)
    assert find_registered(store, "house") is None


def test_a_lora_that_was_trained_on_a_held_out_video_gets_no_verdict_nor_do_its_heirs(
    store: FolderStore,
) -> None:
    path = write_evaluation(store, "one", 25, 1.0)
    seen = TrainedOn(sources=("5" * 64,))
    store.put(lineage_path("ancestor"), seen.to_json())
    write_lineage(
        store,
        "one",
        {"kind": "mds", "folders": []},
        Lora(name="run:ancestor", sha256="0" * 64, run_id="ancestor"),
    )
    metrics = Metrics.from_json(store.read(path))
    pairs = [pair.model_copy(update={"source_sha256": "5" * 64}) for pair in metrics.pairs]
    store.put(path, metrics.model_copy(update={"pairs": tuple(pairs)}).to_json())
    gated = gate(RULE, store, path)
    assert gated.verdict.outcome == "no-verdict"
    assert "trained on 10 held-out videos (videos/00.mp4, " in gated.verdict.reasons[0]
    assert find_registered(store, "house") is None


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "is not recorded"),
        (TrainedOn(sources=(), unknown=("the shards of /old",)), "in the shards of /old"),
    ],
)
def test_what_was_trained_on_nobody_knows_what_gets_no_verdict(
    store: FolderStore, record: TrainedOn | None, words: str
) -> None:
    path = write_evaluation(store, "one", 25, 1.0)
    if record is None:
        (store.root / lineage_path("one")).unlink()
    else:
        store.put(lineage_path("one"), record.to_json())
    verdict = gate(RULE, store, path).verdict
    assert verdict.outcome == "no-verdict"
    assert words in verdict.reasons[0]
    assert "hvkf registry promote" in verdict.reasons[0]


@pytest.mark.parametrize("is_seen", [True, False])
def test_by_hand_a_lora_that_saw_a_held_out_video_is_refused_and_another_is_not(
    store: FolderStore, tmp_path: Path, is_seen: bool
) -> None:
    config = small_config(tmp_path, write_dataset(tmp_path / "data", 3))
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    ingest.commit(plan, store)
    clips = read_clips(store, newest_catalog(store, "default").catalog)
    side = "holdout" if is_seen else "train"
    sources = tuple({clip.source_sha256 for clip in clips if clip.split == side})
    write_run(store, "by-hand")
    store.put(lineage_path("by-hand"), TrainedOn(sources=sources).to_json())
    command = ["registry", "promote", "house", "--workspace", str(store.root)]
    if is_seen:
        with pytest.raises(BadInput, match=r"trained on 1 held-out video \(videos/0"):
            run_command(*command, "--lora", "run:by-hand")
    else:
        run_command(*command, "--lora", "run:by-hand")
        assert read_registered(store, "house").in_use.run_id == "by-hand"
