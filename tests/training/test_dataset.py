"""What training samples hold: the reference gave every rank the same noise, and again on resume."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter

from hvkf.config import Config
from hvkf.errors import BadInput, CorruptData
from hvkf.storage import FolderStore
from hvkf.training.batch_plan import MicroBatch
from hvkf.training.dataset import (
    Draw,
    LatentBatch,
    LatentReader,
    Schedule,
    TrainSamples,
    make_loader,
)
from hvkf.training.items import Items, find_sources, read_items
from tests.reference_caches import LATENT_COLUMNS
from tests.training.latents import latent_sample, run_training, train_config, write_latents

BUCKET = "32x32x5"


def open_samples(config: Config, store: FolderStore) -> tuple[TrainSamples, Items]:
    sources = find_sources(config, store)
    items = read_items(store, sources, config.data)
    return TrainSamples(config, LatentReader(store, sources, config.data), items.train), items


def draw(samples: TrainSamples, *keys: str, epoch: int = 0) -> LatentBatch:
    return samples[Draw(MicroBatch(keys, borrowed=False), epoch)]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def keys(store: FolderStore) -> list[str]:
    write_latents(store, train_config(store.root), {BUCKET: 4})
    return [f"{BUCKET}-{number}" for number in (1, 2, 3)]


def test_noise_and_sigma_differ_from_item_to_item_and_from_epoch_to_epoch(
    store: FolderStore, keys: list[str]
) -> None:
    samples, _ = open_samples(train_config(store.root), store)
    batches = [draw(samples, *keys, epoch=epoch) for epoch in range(2)]
    noise = torch.cat([batch.noise for batch in batches])
    assert len({tensor.sum().item() for tensor in noise}) == 6
    assert len({sigma.item() for batch in batches for sigma in batch.sigmas}) == 6


def test_a_sample_is_the_same_in_any_batch_on_any_rank(store: FolderStore, keys: list[str]) -> None:
    config = train_config(store.root, hparams={"caption_dropout_p": 0.5})
    samples, _ = open_samples(config, store)
    together = draw(samples, *keys, epoch=3)
    other, _ = open_samples(config, store)
    for row, key in enumerate(keys):
        alone = draw(other, key, epoch=3)
        assert alone.noise[0].equal(together.noise[row])
        assert alone.sigmas[0] == together.sigmas[row]
        assert alone.latents[0].equal(together.latents[row])
        assert alone.prompt.prompt_embeds[0].equal(together.prompt.prompt_embeds[row])


def test_another_seed_gives_other_noise(store: FolderStore, keys: list[str]) -> None:
    first, _ = open_samples(train_config(store.root), store)
    second, _ = open_samples(train_config(store.root, experiment={"random_seed": 8}), store)
    assert not draw(first, keys[0]).noise.equal(draw(second, keys[0]).noise)


def test_captions_are_dropped_per_sample_and_a_dropped_one_keeps_a_token(
    store: FolderStore,
) -> None:
    config = train_config(store.root, hparams={"caption_dropout_p": 0.5})
    write_latents(store, config, {BUCKET: 41})
    samples, items = open_samples(config, store)
    batch = draw(samples, *(item.key for item in items.train))
    dropped = batch.prompt.prompt_embeds.flatten(1).abs().sum(dim=1) == 0
    assert 8 <= int(dropped.sum()) <= 32
    lengths = batch.prompt.prompt_attention_mask.sum(dim=1)
    assert lengths[dropped].eq(1).all()
    assert lengths[~dropped].eq(5).all()


@pytest.mark.parametrize("stored", ["bf16", "fp16", "fp32"])
def test_latents_read_as_they_were_stored(store: FolderStore, stored: str) -> None:
    config = train_config(store.root)
    write_latents(store, config, {BUCKET: 2}, stored=stored)
    samples, _ = open_samples(config, store)
    batch = draw(samples, f"{BUCKET}-1")
    exact = torch.from_numpy(latent_sample(f"{BUCKET}-1", BUCKET)["latents"])
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[stored]
    assert batch.latents.dtype == torch.float32
    assert batch.latents[0].equal(exact.to(dtype).float())
    assert batch.condition.dtype == batch.prompt.prompt_embeds.dtype == dtype


def test_held_out_and_masked_items_do_not_train(store: FolderStore) -> None:
    config = train_config(store.root)
    write_latents(store, config, {BUCKET: 4}, num_holdout=2)
    sources = find_sources(config, store)
    items = read_items(store, sources, config.data)
    assert [item.key for item in items.holdout] == [f"{BUCKET}-0", f"{BUCKET}-1"]
    assert [item.key for item in items.train] == [f"{BUCKET}-2", f"{BUCKET}-3"]
    masked = read_items(store, {**sources, "masked": [f"{BUCKET}-3"]}, config.data)
    assert [item.key for item in masked.train] == [f"{BUCKET}-2"]
    assert masked.identity != items.identity


def test_nothing_to_train_on_is_refused_with_the_fix(store: FolderStore) -> None:
    config = train_config(store.root)
    with pytest.raises(BadInput, match="run `hvkf encode` first"):
        find_sources(config, store)
    write_latents(store, config, {BUCKET: 2}, num_holdout=2)
    with pytest.raises(BadInput, match=r"every sample \(2\) is of a held-out.*holdout_fraction"):
        read_items(store, find_sources(config, store), config.data)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_planned_micro_batches_in_order(
    store: FolderStore, num_workers: int
) -> None:
    loading = {"dataloader_kwargs": {"num_workers": num_workers}, "batch_size": 2}
    config = train_config(store.root, data=loading)
    write_latents(store, config)
    samples, items = open_samples(config, store)
    schedule = Schedule(
        items=items.by_bucket(),
        seed=1,
        global_batch_size=4,
        batch_size=2,
        epoch_steps=2,
        drop_last=False,
        shuffle=True,
        rank=1,
        num_ranks=2,
    )
    loaded = list(make_loader(config, samples, schedule, 1, 4))
    planned = list(schedule.draws(1, 4))
    assert [batch.keys for batch in loaded] == [draw.batch.keys for draw in planned]
    assert [draw.epoch for draw in planned] == [0, 1, 1]
    for batch, wanted in zip(loaded, planned, strict=True):
        assert batch.noise.equal(samples[wanted].noise)


def write_cache(
    folder: Path, num_samples: int, *, seed: int = 0, bucket: str = BUCKET, **options: Any
) -> None:
    """Write a cache as the reference's tool does: float32, no keys, no captions."""
    names = ["prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds"]
    columns = dict.fromkeys([*names, "latents", "latents_cond"], "ndarray")
    folder.mkdir(parents=True)
    with MDSWriter(out=str(folder), columns=columns, **options) as writer:
        for number in range(num_samples):
            sample = latent_sample(f"{seed}/{number}", bucket)
            sample["prompt_attention_mask"] = sample["prompt_attention_mask"].astype(np.float32)
            writer.write({name: sample[name] for name in columns})


def cache_config(store: FolderStore, *folders: Path, **data: Any) -> Config:
    names = [str(folder) for folder in folders]
    return train_config(store.root, data={"local": names, **data})


def test_a_cache_of_the_reference_is_read_as_it_is(store: FolderStore, tmp_path: Path) -> None:
    folders = [tmp_path / "32x32x5_00", tmp_path / "32x32x5_01", tmp_path / "48x32x9_00"]
    write_cache(folders[0], 3)
    write_cache(folders[1], 2, seed=1, compression="zstd")
    write_cache(folders[2], 2, bucket="48x32x9", size_limit=20_000)
    samples, items = open_samples(cache_config(store, *folders), store)
    by_bucket = items.by_bucket()
    assert {bucket: len(keys) for bucket, keys in by_bucket.items()} == {"32x32x5": 5, "48x32x9": 2}
    assert len({item.key for item in items.train}) == 7
    assert items.holdout == []
    batch = draw(samples, *by_bucket["32x32x5"])
    expected = [latent_sample(f"0/{number}", BUCKET)["latents"] for number in range(3)]
    expected += [latent_sample(f"1/{number}", BUCKET)["latents"] for number in range(2)]
    assert batch.latents.numpy() == pytest.approx(np.stack(expected))
    assert batch.prompt.prompt_attention_mask.dtype == torch.bool
    assert batch.prompt.prompt_attention_mask.sum(dim=1).eq(5).all()
    assert draw(samples, *by_bucket["48x32x9"]).latents.shape == (2, 16, 3, 4, 6)


def test_keys_of_a_cache_stay_when_it_moves_and_change_with_its_bytes(
    store: FolderStore, tmp_path: Path
) -> None:
    write_cache(tmp_path / "a" / "32x32x5_00", 2)
    write_cache(tmp_path / "b" / "32x32x5_00", 2)
    write_cache(tmp_path / "c" / "32x32x5_00", 2, seed=1)
    first, same, other = (
        [item.key for item in open_samples(cache_config(store, folder), store)[1].train]
        for folder in (tmp_path / name / "32x32x5_00" for name in "abc")
    )
    assert first == same
    assert not set(first) & set(other)


def test_shards_named_by_data_remote_are_brought_here(store: FolderStore, tmp_path: Path) -> None:
    write_cache(tmp_path / "far" / "32x32x5_00", 2, compression="zstd")
    data = {"remote": [str(tmp_path / "far" / "32x32x5_00")], "local": [str(tmp_path / "near")]}
    samples, items = open_samples(train_config(store.root, data=data), store)
    assert draw(samples, items.train[1].key).latents.shape == (1, 16, 2, 4, 4)
    assert list((tmp_path / "near").rglob("*.mds"))


def test_a_cache_with_recorded_hashes_is_checked(store: FolderStore, tmp_path: Path) -> None:
    folder = tmp_path / "32x32x5_00"
    write_cache(folder, 2, hashes=["sha1", "xxh64"])
    samples, items = open_samples(cache_config(store, folder), store)
    assert draw(samples, items.train[0].key).keys == (items.train[0].key,)
    shard = next(folder.glob("*.mds"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    samples, items = open_samples(cache_config(store, folder), store)
    with pytest.raises(CorruptData, match=r"shard.00000.mds has another (sha1|xxh64) hash"):
        draw(samples, items.train[0].key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda shard: shard.unlink(), r"32x32x5_00/shard.00000.mds is missing"),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-9]), r"bytes where its index says"),
    ],
)
def test_a_shard_that_is_gone_or_cut_short_is_named(
    spoil: Callable[[Path], None], message: str, store: FolderStore, tmp_path: Path
) -> None:
    folder = tmp_path / "32x32x5_00"
    write_cache(folder, 2)
    spoil(next(folder.glob("*.mds")))
    with pytest.raises(CorruptData, match=message):
        open_samples(cache_config(store, folder), store)


def test_a_folder_without_index_is_refused(store: FolderStore, tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "32x32x5_00", 1)
    with pytest.raises(BadInput, match=r"cache has no index.json: name the folders"):
        open_samples(cache_config(store, tmp_path / "cache"), store)


def test_a_missing_column_is_refused_with_the_setting(store: FolderStore, tmp_path: Path) -> None:
    write_cache(tmp_path / "32x32x5_00", 1)
    with pytest.raises(BadInput, match=r"no column 'cond'.*latents_cond.*data.latents_cond_key"):
        open_samples(cache_config(store, tmp_path / "32x32x5_00", latents_cond_key="cond"), store)


def test_samples_of_several_shapes_in_one_folder_are_refused_by_key(
    store: FolderStore, tmp_path: Path
) -> None:
    other = latent_sample("other", "48x32x9")
    write_records(tmp_path / "mixed", {}, {name: other[name] for name in TWO_ROWS})
    samples, items = open_samples(cache_config(store, tmp_path / "mixed"), store)
    keys = [item.key for item in items.train]
    with pytest.raises(BadInput, match=rf"{keys[0]}, {keys[1]} are of one bucket"):
        draw(samples, *keys)


def write_records(folder: Path, *changes: Mapping[str, Any]) -> None:
    """Write a cache of one record for each change of a good one's columns."""
    columns = dict.fromkeys(LATENT_COLUMNS, "ndarray")
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for number, change in enumerate(changes):
            sample = {**latent_sample(str(number), BUCKET), **change}
            writer.write({name: sample[name] for name in columns})


TWO_ROWS = dict.fromkeys(("latents", "latents_cond"), np.ones((16, 2, 1, 4), np.float32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (TWO_ROWS, "latents of 4x1 have an odd side"),
        ({"latents": np.ones((16, 2, 4, 6), np.float32)}, "latents and latents_cond differ"),
        (
            dict.fromkeys(TWO_ROWS, np.ones((16, 2, 4, 6), np.float32)),
            "it is of 48x32x5 in a folder for 32x32x5",
        ),
        (
            {"latents": np.ones((16, 4), np.float32), "latents_cond": np.ones((16, 4), np.float32)},
            "not",
        ),
        ({"latents": np.ones((16, 2, 4, 4), np.int64)}, "latents holds int64, not float32"),
        ({"latents": np.full((16, 2, 4, 4), np.nan, np.float32)}, "latents holds NaN"),
        ({"prompt_embeds": np.ones(9, np.float32)}, "prompt_attention_mask does not fit"),
        ({"pooled_prompt_embeds": np.ones((2, 2), np.float32)}, "is not one vector"),
    ],
)
def test_a_record_that_cannot_train_is_left_out_and_named(
    change: Mapping[str, Any],
    reason: str,
    store: FolderStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_records(tmp_path / "32x32x5_00", {}, change, {})
    samples, items = open_samples(cache_config(store, tmp_path / "32x32x5_00"), store)
    first, bad, last = (item.key for item in items.train)
    batch = draw(samples, first, bad)
    assert batch.keys == (first, last)
    assert draw(samples, bad, last).keys == (last, last)
    (said,) = caplog.messages
    assert f"{tmp_path / '32x32x5_00'} record 1 cannot train: " in said
    assert reason in said


def test_a_folder_without_one_record_that_can_train_is_refused(
    store: FolderStore, tmp_path: Path
) -> None:
    write_records(tmp_path / "32x32x5_00", TWO_ROWS, TWO_ROWS)
    samples, items = open_samples(cache_config(store, tmp_path / "32x32x5_00"), store)
    with pytest.raises(BadInput, match=r"2 records in a row cannot train.*record 1 cannot train"):
        draw(samples, items.train[1].key)


def test_a_run_ends_on_a_cache_with_records_that_cannot_train(
    store: FolderStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_records(tmp_path / "32x32x5_00", {}, TWO_ROWS, {}, TWO_ROWS)
    config = cache_config(store, tmp_path / "32x32x5_00")
    run_training(config, store)
    assert store.exists("runs/test/result.json")
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert {message.split(" cannot")[0][-8:] for message in warnings} == {"record 1", "record 3"}
