"""Encoded samples: as small as promised, the same from any order, still read when older."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvkf import ledger
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.model.latent_columns import read_condition
from hvkf.model.loading import TextEncoders
from hvkf.model.precision import from_stored
from hvkf.model.text import encode_prompts
from hvkf.model_source import TEXT_PARTS, model_identity
from hvkf.records import DatasetCommit, digest
from hvkf.stages import cache, encode_segments, ingest
from hvkf.stages import encode as encode_stage
from hvkf.stages.encode import latents_root, newest_latents
from hvkf.stages.encode_segments import Encoder
from hvkf.storage import FolderStore
from tests.workspaces import small_config, write_clip, write_table

REFERENCE_BYTES_64X64X33 = 109_000
EXACT: dict[str, object] = {"precision": "fp32", "stored": "fp32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Encoder]:
    folder = tmp_path_factory.mktemp("encode")
    config = small_config(folder, folder / "metadata.csv")
    return config, Encoder(config, FolderStore(folder))


def scene(
    key: str, num_frames: int, size: int, caption: str = "A square moves."
) -> dict[str, object]:
    video = np.random.default_rng(0).integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)
    return {"item_key": key, "clip_id": key, "source": key, "caption": caption, "video": video}


def num_array_bytes(sample: dict[str, object]) -> int:
    arrays = sum(value.nbytes for value in sample.values() if isinstance(value, np.ndarray))
    return arrays + sum(len(value) for value in sample.values() if isinstance(value, bytes))


def test_a_sample_takes_at_most_36_percent_of_the_references_bytes(
    encoder: tuple[Config, Encoder],
) -> None:
    (sample,) = encoder[1].encode([scene("key", 33, 64)])
    assert num_array_bytes(sample) <= 0.36 * REFERENCE_BYTES_64X64X33
    assert sample["latents"].dtype == np.uint16


def test_by_arithmetic_so_does_one_of_720p() -> None:
    """What the packed layout keeps at 1280x720x97, with a long caption of 200 tokens."""
    values, frames, text, pooled = 16 * 25 * 90 * 160, 25, 4096, 768
    reference = 4 * (2 * values + 256 * text + 256 + pooled)
    empty = 18  # of 25 latent frames: see test_exact_encoding
    packed = 2 * (values + values * (frames - empty) // frames + 200 * text + pooled)
    assert packed <= 0.36 * reference


def test_a_samples_condition_does_not_depend_on_what_was_encoded_before(
    encoder: tuple[Config, Encoder], tmp_path: Path
) -> None:
    fresh = Encoder(encoder[0], FolderStore(tmp_path))
    encoder[1].encode([scene("other", 33, 64)])
    first, again = (one.encode([scene("key", 33, 64)])[0] for one in (encoder[1], fresh))
    assert first.keys() == again.keys()
    for name, value in first.items():
        same = again[name]
        assert np.array_equal(value, same) if isinstance(value, np.ndarray) else value == same
    assert read_condition(first).shape == from_stored(first["latents"]).shape
    assert torch.isfinite(read_condition(first)).all()


def test_samples_of_a_batch_equal_those_encoded_alone_but_for_rounding(tmp_path: Path) -> None:
    config = small_config(tmp_path, tmp_path / "metadata.csv", encode=EXACT)
    encoder = Encoder(config, FolderStore(tmp_path))
    scenes = [scene(key, 33, 64, f"Take {key}.") for key in ("one", "two", "three")]
    together = encoder.encode(scenes)
    for of_batch, (alone,) in zip(
        together, ([*map(encoder.encode, [[one] for one in scenes])]), strict=True
    ):
        assert of_batch.keys() == alone.keys()
        for name in ("item_key", "caption", "prompt_embeds"):
            assert np.array_equal(of_batch[name], alone[name])
        assert np.allclose(of_batch["latents"], alone["latents"], rtol=1e-4, atol=1e-5)
        assert torch.allclose(read_condition(of_batch), read_condition(alone), rtol=1e-4, atol=1e-5)


CAPTIONS = ("A square.", "A bright square moves.", "A square moves down and to the right.", "")


def encoded_captions(encoder: Encoder, captions: Sequence[str]) -> list[dict[str, object]]:
    scenes = [scene(str(number), 5, 32, caption) for number, caption in enumerate(captions)]
    batches = encoder.caption_batches(captions)
    return [sample for one in scenes for sample in encoder.encode([one], batches)]


def test_captions_of_a_batch_equal_those_encoded_alone_but_for_rounding(tmp_path: Path) -> None:
    found = []
    for size in (1, 3):
        config = small_config(
            tmp_path, tmp_path / "metadata.csv", encode={**EXACT, "caption_batch_size": size}
        )
        found.append(encoded_captions(Encoder(config, FolderStore(tmp_path)), CAPTIONS))
    for alone, of_batch in zip(*found, strict=True):
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            assert np.allclose(of_batch[name], alone[name], rtol=1e-4, atol=1e-5)
        for name in ("prompt_attention_mask", "latents"):
            assert np.array_equal(of_batch[name], alone[name])


def test_captions_go_through_the_encoders_with_those_of_like_lengths_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        tmp_path, tmp_path / "metadata.csv", encode={**EXACT, "caption_batch_size": 2}
    )
    encoder = Encoder(config, FolderStore(tmp_path))
    seen: list[tuple[str, ...]] = []

    def see(encoders: TextEncoders, captions: Sequence[str], *rest: Any, **options: Any) -> Any:
        seen.append(tuple(captions))
        return encode_prompts(encoders, captions, *rest, **options)

    monkeypatch.setattr(encode_segments, "encode_prompts", see)
    for order in (CAPTIONS, CAPTIONS[::-1], [f"The video shows {text}" for text in CAPTIONS]):
        encoded_captions(encoder, [*order, order[0]])
    assert sorted(seen) == [("", "A square."), (CAPTIONS[1], CAPTIONS[2])]


BATCHES = ({"batch_size": 2}, {"caption_batch_size": 2}, {"batch_size": 2, "caption_batch_size": 3})


@pytest.mark.parametrize("batches", BATCHES)
def test_batches_follow_from_a_segment_not_from_who_encodes_it(
    batches: dict[str, object], tmp_path: Path
) -> None:
    """Short clips enter one bucket only, so that a caption's batch differs between buckets."""
    rows = []
    for number in range(6):
        file = f"videos/{number}.mp4"
        write_clip(tmp_path / "data" / file, number, num_frames=7 if number % 2 else 20)
        rows.append((f"A square moves{' and moves' * (number // 2)}, take {number}.", file))
    table = write_table(tmp_path / "data", rows)
    small = {"bucket_reso": ["32x32x5", "48x32x9"], "segment_mb": 1}
    found = []
    for name, workers, step in (("one", 1, 1), ("two", 2, 1), ("backwards", 1, -1)):
        config = small_config(tmp_path / name, table, cache=small, encode={**EXACT, **batches})
        store = FolderStore(Path(config.workspace))
        for stage in (ingest, cache, encode_stage):
            plan = stage.plan(config, store)
            for worker in range(workers):
                stage.run(plan, store, plan.parts[worker::workers][::step])
            stage.commit(plan, store)
        root = latents_root(config, store)
        found.append({path: store.read(path) for path in store.list(root) if path.endswith(".mds")})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 1


@pytest.mark.parametrize(
    "changed", [{"batch_size": 2}, {"vae_tile": 128}, {"caption_batch_size": 2}]
)
def test_settings_that_change_bits_name_another_folder_and_their_defaults_none(
    changed: dict[str, object], tmp_path: Path
) -> None:
    store = FolderStore(tmp_path)
    model = model_identity(plain(tmp_path).model, store, ("vae", *TEXT_PARTS))
    assert (
        latents_root(plain(tmp_path), store) == f"latents/{digest([2, model, 'fp32', 'bf16', 0])}"
    )
    config = small_config(
        tmp_path, tmp_path / "metadata.csv", encode={"precision": "fp32", **changed}
    )
    assert latents_root(config, store) != latents_root(plain(tmp_path), store)


def plain(folder: Path) -> Config:
    return small_config(folder, folder / "metadata.csv")


def test_smaller_tiles_are_what_the_vae_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, tmp_path / "metadata.csv", encode={**EXACT, "vae_tile": 64})
    encoder = Encoder(config, FolderStore(tmp_path))
    sides: set[int] = set()
    forward = encoder._vae.encoder.forward

    def see(tile: torch.Tensor) -> torch.Tensor:
        sides.update(tile.shape[-2:])
        moments: torch.Tensor = forward(tile)
        return moments

    monkeypatch.setattr(encoder._vae.encoder, "forward", see)
    encoder.encode([scene("key", 5, 96)])
    assert max(sides) == 64


@pytest.mark.parametrize(
    ("num_samples", "said"),
    [
        (
            2,
            r"^2 samples of 64x64x5 did not fit.* encode.batch_size below 2 or .*vae_tile",
        ),
        (1, r"^One sample of 64x64x5 did not fit.* Set encode.vae_tile below \d+, .*`hvkf plan`"),
    ],
)
def test_what_does_not_fit_the_gpu_is_said_with_the_fix(
    num_samples: int, said: str, encoder: tuple[Config, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(encode_segments, "encode_video", fill)
    with pytest.raises(BadInput, match=said):
        encoder[1].encode([scene(str(number), 5, 64) for number in range(num_samples)])


@pytest.mark.parametrize(
    ("num_captions", "said"),
    [
        (2, r"^2 captions did not fit.* Set encode.caption_batch_size below 2, or take a larger"),
        (1, r"^One caption did not fit the GPU's memory while encoding. Take a larger GPU: `hvkf"),
    ],
)
def test_captions_that_do_not_fit_the_gpu_are_said_with_the_fix(
    num_captions: int,
    said: str,
    encoder: tuple[Config, Encoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(encode_segments, "encode_prompts", fill)
    batch = tuple(f"Not encoded yet, {number}." for number in range(num_captions))
    with pytest.raises(BadInput, match=said):
        encoder[1].encode([scene("key", 5, 64, batch[0])], dict.fromkeys(batch, batch))


@pytest.mark.parametrize("version", [1, 2])
def test_latents_of_an_older_hvkf_are_found_until_there_are_newer(
    version: int, tmp_path: Path
) -> None:
    config, store = small_config(tmp_path, tmp_path / "metadata.csv"), FolderStore(tmp_path)
    assert newest_latents(config, store) is None
    for number in range(1, version + 1):
        root = latents_root(config, store, number)
        ledger.put_commit(store, ledger.dataset_folder(root, config.ingest.dataset), _commit())
    found = newest_latents(config, store)
    assert found is not None
    assert found[0] == latents_root(config, store, version)
    assert encode_stage.STAGE_VERSION == 2


def _commit() -> DatasetCommit:
    return DatasetCommit(
        dataset="default",
        number=1,
        plan="p",
        catalog="c",
        segments=("s",),
        num_items=0,
        num_failed=0,
    )
