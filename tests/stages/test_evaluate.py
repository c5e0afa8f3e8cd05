"""Evaluating a run on held-out pairs: which pairs, which figures, and what survives a kill."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvkf import catalog, ledger
from hvkf.captions import clean_caption
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.lossless_video import unpack_frames
from hvkf.model.image_quality import likeness
from hvkf.model.renderer import Renderer
from hvkf.records import Plan
from hvkf.shards import Segment
from hvkf.stages import cache, evaluate, evaluate_pairs, ingest
from hvkf.stages.evaluate import choose_pairs
from hvkf.stages.evaluate_records import (
    PairRecord,
    PairTask,
)
from hvkf.storage import FolderStore
from hvkf.video import decode_frames, probe
from tests.finished_runs import write_run
from tests.stages.evaluations import NUM_PAIRS, config_in, evaluated, made_up, read_metrics
from tests.stages.killed_store import Killed, KilledStore, differing, tree
from tests.workspaces import small_config


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def store(folder: Path) -> FolderStore:
    return FolderStore(folder / "workspace")


def pair(key: str, bucket: str = "32x32x5", source: str = "s") -> PairTask:
    return PairTask(key=key, bucket=bucket, source_sha256=source, segment="x", position=0)


@given(
    st.lists(
        st.builds(
            pair,
            st.uuids().map(str),
            st.sampled_from(["32x32x5", "48x32x5", "32x32x9"]),
            st.sampled_from("abc"),
        ),
        max_size=30,
        unique_by=lambda entry: entry.key,
    ),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_the_choice_of_pairs_spreads_over_buckets_and_videos_in_any_order(
    pairs: list[PairTask], num_pairs: int, random: Any
) -> None:
    chosen = choose_pairs(pairs, num_pairs)
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert choose_pairs(shuffled, num_pairs) == chosen
    assert choose_pairs(pairs, num_pairs + 1)[: len(chosen)] == chosen
    assert len({entry.key for entry in chosen}) == min(num_pairs, len(pairs))

    taken = Counter(entry.bucket for entry in chosen)
    for bucket, there in Counter(entry.bucket for entry in pairs).items():
        # A bucket falls behind another by more than one only when it has no more pairs.
        assert taken[bucket] == there or taken[bucket] >= max(taken.values()) - 1
        of_bucket = Counter(entry.source_sha256 for entry in chosen if entry.bucket == bucket)
        for source, had in Counter(e.source_sha256 for e in pairs if e.bucket == bucket).items():
            assert (
                of_bucket[source] == had
                or of_bucket[source] >= max(of_bucket.values(), default=0) - 1
            )


def test_only_samples_of_held_out_videos_are_rendered(finished: Path) -> None:
    store = FolderStore(finished / "workspace")
    metrics = read_metrics(finished / "workspace")
    clips = catalog.read_clips(store, catalog.newest_catalog(store, "default").catalog)
    held_out = {clip.source for clip in clips if clip.split == "holdout"}
    assert len(metrics.pairs) == NUM_PAIRS
    assert {entry.source for entry in metrics.pairs} <= held_out
    assert {entry.bucket for entry in metrics.pairs} == {"32x32x5", "32x48x9"}


def truth_of(workspace: Path, config: Config, key: str) -> tuple[Any, torch.Tensor]:
    """Read the sample of a pair from its shard."""
    store = FolderStore(workspace)
    root = cache.SCENES_ROOT
    commit = ledger.latest_dataset(store, root, "default")
    assert commit is not None
    for segment in commit.segments:
        record = ledger.read_segment(store, root, segment)
        for position, item in enumerate(record.items):
            if item.key == key:
                scene = Segment(store, record, workspace / "shards")[position]
                return scene, torch.from_numpy(unpack_frames(scene["video"]))
    raise AssertionError(f"no scene {key}")


def test_the_figures_are_those_of_the_rendered_frames(finished: Path) -> None:
    config = config_in(finished)
    workspace = finished / "workspace"
    renderer = Renderer(config.model, FolderStore(workspace), "fp32")
    pairs = read_metrics(workspace).pairs

    def render(key: str) -> tuple[torch.Tensor, torch.Tensor]:
        scene, truth = truth_of(workspace, config, key)
        frames = renderer.render(
            {0: truth[0], -1: truth[-1]},
            clean_caption(scene["caption"]),
            num_frames=len(truth),
            steps=2,
            guidance=6.0,
            seed=0,
            item_key=key,
        )
        return frames, truth

    for entry in pairs:
        frames, truth = render(entry.key)
        assert entry.base.clip.psnr_db == pytest.approx(likeness(frames, truth).psnr_db, abs=1e-3)
        best = likeness(renderer.reconstruct(truth)[-1], truth[-1])
        assert entry.ceiling.last.psnr_db == pytest.approx(best.psnr_db, abs=1e-3)
    renderer.fuse_lora(workspace / "runs/test/step-00000004/pytorch_lora_weights.safetensors")
    for entry in pairs:
        frames, truth = render(entry.key)
        first = likeness(frames[0], truth[0])
        assert entry.lora.first.psnr_db == pytest.approx(first.psnr_db, abs=1e-3)
        assert entry.lora.first.ssim == pytest.approx(first.ssim, abs=1e-5)
        assert entry.lora.clip.mse != entry.base.clip.mse


def test_means_are_over_pairs_and_pooled_over_errors(finished: Path) -> None:
    metrics = read_metrics(finished / "workspace")
    errors = [entry.lora.last.mse for entry in metrics.pairs]
    decibels = [entry.lora.last.psnr_db for entry in metrics.pairs]
    assert metrics.lora.last.psnr_db == pytest.approx(np.mean(decibels), abs=1e-4)
    assert metrics.lora.last.pooled_psnr_db == pytest.approx(
        -10 * np.log10(np.mean(errors)), abs=1e-3
    )


def test_pictures_and_videos_are_the_truth_and_the_renderings(finished: Path) -> None:
    workspace, config = finished / "workspace", config_in(finished)
    for entry in read_metrics(workspace).pairs:
        scene, truth = truth_of(workspace, config, entry.key)
        first = np.asarray(Image.open(workspace / entry.files["first"]))
        last = np.asarray(Image.open(workspace / entry.files["last"]))
        assert np.array_equal(first, truth[0].numpy())
        assert np.array_equal(last, truth[-1].numpy())
        for name in ("lora", "base", "truth"):
            found = probe(workspace / entry.files[name])
            assert (found.width, found.height) == (truth.shape[2], truth.shape[1])
            assert found.num_frames == len(truth)
            assert float(found.fps) == pytest.approx(scene["fps"])
        played = torch.from_numpy(
            np.stack([f for _, f in decode_frames(workspace / entry.files["truth"], range(5))])
        )
        assert likeness(played, truth[:5]).psnr_db > 25


def test_trivial_answers_and_motion_are_measured(finished: Path) -> None:
    workspace, config = finished / "workspace", config_in(finished)
    for entry in read_metrics(workspace).pairs:
        _, truth = truth_of(workspace, config, entry.key)
        assert entry.freeze is not None
        still = likeness(truth[:1].expand_as(truth), truth)
        assert entry.freeze.clip.psnr_db == pytest.approx(still.psnr_db, abs=1e-3)
        assert entry.cross_fade is not None
        assert entry.cross_fade.first.psnr_db == entry.cross_fade.last.psnr_db == 100.0
        assert entry.truth_motion == evaluate_pairs.measure_motion(truth)
        assert entry.lora_motion is not None


def test_gains_are_compared_with_the_base_and_both_trivial_answers(store: FolderStore) -> None:
    metrics = made_up(25)
    gains = {(entry.figure, entry.against): entry.gain for entry in metrics.comparisons}
    assert gains["keyframe_psnr_db", "the base model"].mean == pytest.approx(2)
    assert gains["clip_psnr_db", "a freeze"].mean == pytest.approx(7)
    assert gains["clip_psnr_db", "a cross-fade"].low == pytest.approx(6)
    assert made_up(7).comparisons == ()


def test_an_evaluation_that_is_done_is_not_done_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_pairs, "Renderer", None)
    store, config = FolderStore(finished / "workspace"), config_in(finished)
    before = tree(finished, "workspace")
    plan = evaluate.plan(config, store)
    assert plan.parts == ()
    assert plan.committed is not None
    summary = evaluate.commit(plan, store)
    assert summary.reused
    assert summary.counts == {"pairs": NUM_PAIRS, "failed": 0}
    assert differing(tree(finished, "workspace"), before) == []


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_it_ends_with_the_same_bytes(
    folder: Path, finished: Path, after: bool
) -> None:
    config = config_in(folder)
    expected = tree(finished / "workspace", "evals")
    num_kills = 0
    for at in (0, 4, 8, 11, 15):
        shutil.rmtree(folder / "workspace" / "evals", ignore_errors=True)
        try:
            evaluated(config, KilledStore(folder / "workspace", at, after=after))
        except Killed:
            num_kills += 1
            evaluated(config, FolderStore(folder / "workspace"))
        assert differing(tree(folder / "workspace", "evals"), expected) == []
    assert num_kills == 5


def test_parts_in_any_order_give_the_same_bytes(folder: Path, finished: Path) -> None:
    config = config_in(folder, pairs_per_part=1)
    evaluated(config, FolderStore(folder / "workspace"), order=[1, 0])
    assert (
        differing(tree(folder / "workspace", "evals"), tree(finished / "workspace", "evals")) == []
    )


def test_another_lora_reuses_what_was_rendered_without(
    folder: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(config_in(folder), store)
    base = tree(store.root, "evals/_base")
    write_run(store, "later", scale=0.5)
    config = config_in(folder)
    later = config.model_copy(
        update={"experiment": config.experiment.model_copy(update={"run_id": "later"})}
    )
    rendered: list[str] = []

    def count(worker: Any, pair: PairTask) -> PairRecord:
        rendered.append(pair.key)
        return render_lora(worker, pair)

    render_lora = evaluate_pairs._PairRenderer.render_lora
    monkeypatch.setattr(evaluate_pairs._PairRenderer, "render_lora", count)
    monkeypatch.setattr(evaluate_pairs._PairRenderer, "render_base", None)
    summary = evaluated(later, store)
    assert len(rendered) == NUM_PAIRS
    assert differing(tree(store.root, "evals/_base"), base) == []
    assert summary.result.startswith("evals/later/step-00000004/")


def test_a_lora_that_diverged_fails_its_pairs_with_a_reason(
    folder: Path, store: FolderStore
) -> None:
    write_run(store, "test", scale=float("nan"))
    with pytest.raises(BadInput, match=r"2 of 2 failed.*evaluate\.max_failed_fraction.*not-finite"):
        evaluated(config_in(folder), store)
    assert not list(store.root.rglob("metrics.json"))
    with pytest.raises(BadInput, match="Not one of 2 pairs was rendered"):
        evaluated(config_in(folder, max_failed_fraction=1.0), store)


def test_without_held_out_videos_the_settings_are_named(folder: Path, store: FolderStore) -> None:
    config = small_config(
        folder, folder / "data" / "metadata.csv", ingest={"dataset": "all", "min_holdout": 0}
    )
    for stage in (ingest, cache):
        plan = stage.plan(config, store)
        stage.run(plan, store, plan.parts)
        stage.commit(plan, store)
    with pytest.raises(BadInput, match=r"Nothing .*'all' is held out.*ingest\.min_holdout"):
        evaluate.plan(config, store)


def test_a_run_that_is_not_there_is_named(folder: Path, store: FolderStore) -> None:
    shutil.rmtree(store.root / "runs")
    with pytest.raises(BadInput, match=r"no run 'test' .*hvkf train"):
        evaluate.plan(config_in(folder), store)


def test_scenes_that_are_not_there_are_asked_for(folder: Path, store: FolderStore) -> None:
    shutil.rmtree(store.root / "scenes")
    with pytest.raises(BadInput, match="hvkf cache"):
        evaluate.plan(config_in(folder), store)


def test_planning_and_committing_load_no_torch(finished: Path, folder: Path) -> None:
    (folder / "workspace" / "evals").mkdir(exist_ok=True)
    shutil.copytree(
        finished / "workspace" / "evals", folder / "workspace" / "evals", dirs_exist_ok=True
    )
    (metrics,) = (folder / "workspace").rglob("metrics.json")
    expected = metrics.read_bytes()
    metrics.unlink()
    program = (
        "import json, sys\n"
        "from hvkf.config import Config\n"
        "from hvkf.stages import evaluate\n"
        "from hvkf.storage import open_store\n"
        "config = Config.model_validate_json(sys.stdin.read())\n"
        "store = open_store(config.workspace)\n"
        "plan = evaluate.plan(config, store)\n"
        "evaluate.commit(plan, store)\n"
        "loaded = [name for name in ('torch', 'streaming', 'prefect') if name in sys.modules]\n"
        "print(json.dumps([len(plan.parts), loaded]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=config_in(folder).model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout) == [1, []]
    assert metrics.read_bytes() == expected


def test_a_plan_survives_being_stored(folder: Path, store: FolderStore) -> None:
    plan = evaluate.plan(config_in(folder), store)
    assert Plan.from_json(plan.to_json()) == plan
    assert evaluate.plan(config_in(folder), store) == plan


def test_whatever_one_pair_makes_anything_raise_is_its_own_failure(
    folder: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(folder, max_failed_fraction=1.0)
    first = choose_pairs(evaluate.held_out_pairs(config, store), NUM_PAIRS)[0].key
    original = Renderer.render

    def broken(self: Renderer, *arguments: Any, **named: Any) -> Any:
        if named["item_key"] == first:
            raise IndexError("of a library")
        return original(self, *arguments, **named)

    monkeypatch.setattr(Renderer, "render", broken)
    evaluated(config, store)
    metrics = read_metrics(folder / "workspace")
    assert {failure.code for failure in metrics.failures} == {"unexpected"}
    assert "IndexError: of a library" in metrics.failures[0].message
    assert len(metrics.pairs) == NUM_PAIRS - 1


def test_one_pair_of_each_video_set_apart_is_rendered_beside_those_that_count(
    prepared: Path,
) -> None:
    store = FolderStore(prepared / "workspace")
    config = config_in(prepared)
    clips = catalog.read_clips(store, catalog.newest_catalog(store, config.ingest.dataset).catalog)
    held_out = {clip.source: clip.source_sha256 for clip in clips if clip.split == "holdout"}
    apart, counted = sorted(held_out)
    plan = evaluate.plan(config_in(prepared, apart=[apart.replace("videos", "*")]), store)
    work = evaluate.evaluation_of(plan)
    assert {pair.source_sha256 for pair in work.pairs} == {held_out[counted]}
    assert [pair.source_sha256 for pair in work.apart] == [held_out[apart]]
    keys = [key for part in plan.parts for key in part.work["keys"]]
    assert keys == [pair.key for pair in (*work.pairs, *work.apart)]
    without = evaluate.evaluation_of(evaluate.plan(config, store))
    assert work.base_root == without.base_root
    assert work.root != without.root


def test_what_is_set_apart_counts_in_no_figure(store: FolderStore) -> None:
    plain, both = made_up(8), made_up(8, num_apart=2)
    assert [pair.key for pair in both.apart] == ["apart-00", "apart-01"]
    assert both.model_copy(update={"apart": ()}) == plain


def test_nothing_is_judged_where_every_held_out_video_is_set_apart(
    prepared: Path, store: FolderStore
) -> None:
    config = config_in(prepared, apart=["videos/*"])
    with pytest.raises(BadInput, match=r"evaluate\.apart=\['videos/\*'\] sets every"):
        evaluate.plan(config, FolderStore(prepared / "workspace"))
