"""`hvkf plan`: what it prints, where its numbers are from, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from hvkf.buckets import Bucket
from hvkf.cli import app, run_stage
from hvkf.config import Config
from hvkf.errors import BadInput, ConfigError
from hvkf.estimate.amounts import Amounts, find_amounts
from hvkf.estimate.cards import CARDS, Card, card_named
from hvkf.estimate.plan import Machine, num_passes
from hvkf.model.tiny import build_tiny_checkpoint
from hvkf.storage import open_store
from hvkf.training.settings import num_steps
from hvkf.training.sharding import Sharding
from tests.workspaces import small_config, write_dataset


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Overrides for a tiny checkpoint and two buckets."""
    checkpoint = build_tiny_checkpoint(tmp_path / "tiny")
    return [
        f"--workspace={tmp_path / 'workspace'}",
        f"--model.pretrained_model_name_or_path={checkpoint}",
        "--cache.bucket_reso=64x64x17,96x64x33",
        "--network.lora_rank=4",
        "--render.width=64",
        "--render.height=64",
        "--render.num_frames=17",
    ]


def planned(settings: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Run `hvkf plan --json`."""
    app(args=["plan", "--json", *words], obj=settings, standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_a_plan_has_every_stage_and_bucket(
    settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = planned(settings, capsys, "--clips", "50")

    rows = [(one["stage"], one["bucket"]) for one in found["stages"]]
    assert rows == [
        ("encode", "64x64x17"),
        ("train", "64x64x17"),
        ("encode", "96x64x33"),
        ("train", "96x64x33"),
        ("render", "64x64x17"),
    ]
    assert all(one["fits"] and one["flops"] > 0 for one in found["stages"])
    assert found["clips"] == {"64x64x17": 50, "96x64x33": 50}
    assert found["totals"]["train_steps"] == 100
    assert found["encode_batches"]["64x64x17"] > found["encode_batches"]["96x64x33"] > 1
    assert not (tmp_path / "workspace").exists()  # it only looks


def test_hours_follow_the_gpu_and_the_utilisation() -> None:
    slow = Machine(card_named("a100-80gb"), 1, Sharding.NOTHING, 0.2)
    fast = Machine(card_named("h100-80gb"), 1, Sharding.NOTHING, 0.4)

    assert fast.hours(989.4e12 * 0.4 * 3600) == pytest.approx(1)
    assert slow.hours(1e18) / fast.hours(1e18) == pytest.approx(2 * 989.4 / 312)


def test_tables_name_the_model_the_card_and_the_totals(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    app(args=["plan"], obj=settings, standalone_mode=False)

    shown = capsys.readouterr().out
    assert "h100-80gb" in shown
    assert "encoded together (encode.batch_size): " in " ".join(shown.split())
    assert "73.6 GB" in shown
    assert "96x64x33" in shown
    assert "GPU-hours" in shown
    assert "there is no catalog yet" in shown


def test_options_say_what_to_write_and_what_it_would_change(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one_bucket = [*settings, "--cache.bucket_reso=320x320x17", "--encode.batch_size=4"]
    found = planned(one_bucket, capsys, "--options")

    peaks = {one["stage"]: one["peak_bytes"] for one in found["stages"]}
    tried = {(one["stage"], one["write"]): one["peak_bytes"] for one in found["options"]}
    less = [
        ("encode", "--encode.batch_size=1"),
        ("encode", "--encode.vae_tile=128"),
        ("train", "--hparams.checkpoint_in_main_memory=true"),
        ("train", "--hparams.packed_weights=nf4"),
        ("train", "--hparams.weights_in_main_memory=true"),
        ("train", "--sharding all --gpus 8"),
        ("render", "--render.speed.offload_encoders=true"),
    ]
    for stage, words in less:
        assert tried[stage, words] < peaks[stage]
    assert tried["train", "--hparams.checkpoint_every_n_blocks=2"] > peaks["train"]
    assert tried["encode", "--encode.batch_size=8"] > peaks["encode"]


def test_what_does_not_fit_is_followed_by_what_would(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CARDS, "h100-80gb", Card("h100-80gb", 10**6, 1e12))

    one_bucket = [*settings, "--cache.bucket_reso=64x64x17"]
    app(args=["plan"], obj=one_bucket, standalone_mode=False)

    shown = capsys.readouterr().out
    assert "NO" in shown
    assert "--hparams.packed_weights=int8" in shown
    assert "Encoding does not fit" in shown


@pytest.mark.parametrize("held", ["packed_weights=int8", "weights_in_main_memory=true"])
def test_what_training_refuses_is_not_planned(settings: list[str], held: str) -> None:
    with pytest.raises(BadInput, match=r"leave hparams.packed_weights and .* out, or use DDP"):
        app(
            args=["plan", "--gpus", "8", "--sharding", "all"],
            obj=[*settings, f"--hparams.{held}"],
            standalone_mode=False,
        )


def test_an_unknown_gpu_is_refused_with_the_list(settings: list[str]) -> None:
    with pytest.raises(BadInput, match=r"no --gpu 'h1000'.*rtx4090-24gb"):
        app(args=["plan", "--gpu", "h1000"], obj=settings, standalone_mode=False)


def test_clips_are_counted_in_the_newest_catalog(tmp_path: Path) -> None:
    config = small_config(tmp_path, write_dataset(tmp_path / "data", 3))
    run_stage("ingest", config, open_store(config.workspace))

    amounts = find_amounts(config, None, 1)

    # 20 frames hold one head of 5 and one of 9, in both families of sizes.
    assert set(amounts.clips.values()) == {3}
    assert "catalog" in amounts.source


def test_no_buckets_are_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"--cache.bucket_reso=960x544x33"):
        find_amounts(Config(), None, 1)


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
def test_steps_are_counted_as_training_counts_them(drop_last: bool, steps: int) -> None:
    config = Config.model_validate(
        {"data": {"batch_size": 4, "dataloader_kwargs": {"drop_last": drop_last}}}
    )
    amounts = Amounts(clips={Bucket(32, 32, 5): 10}, source="here", videos=1)
    assert num_passes(config, amounts, 1) == (steps, 1.0)
    assert num_steps(config, [10], 4) == (steps, steps)


def test_a_plan_without_one_complete_batch_says_what_to_lower() -> None:
    config = Config.model_validate(
        {"data": {"batch_size": 16, "dataloader_kwargs": {"drop_last": True}}}
    )
    amounts = Amounts(clips={Bucket(32, 32, 5): 10}, source="here", videos=1)
    with pytest.raises(BadInput, match=r"the largest has 10.*lower data\.batch_size"):
        num_passes(config, amounts, 1)
