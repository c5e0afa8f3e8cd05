"""Encoded samples: as small as promised, the same from any order, still read when older."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hvkf import ledger
from hvkf.config import Config
from hvkf.model.latent_columns import read_condition
from hvkf.model.precision import from_stored
from hvkf.records import DatasetCommit
from hvkf.stages import encode as encode_stage
from hvkf.stages.encode import latents_root, newest_latents
from hvkf.stages.encode_segments import Encoder, Prompts
from hvkf.storage import FolderStore
from tests.workspaces import small_config

REFERENCE_BYTES_64X64X33 = 109_000


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
    sample = encoder[1].encode(scene("key", 33, 64))
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
    encoder[1].encode(scene("other", 33, 64))
    first, again = (one.encode(scene("key", 33, 64)) for one in (encoder[1], fresh))
    assert first.keys() == again.keys()
    for name, value in first.items():
        same = again[name]
        assert np.array_equal(value, same) if isinstance(value, np.ndarray) else value == same
    assert read_condition(first).shape == from_stored(first["latents"]).shape
    assert torch.isfinite(read_condition(first)).all()


def test_a_caption_is_encoded_once_and_old_ones_make_room() -> None:
    asked: list[str] = []

    def encode(caption: str) -> dict[str, object]:
        asked.append(caption)
        return {"embeds": np.zeros(100, np.uint8)}

    prompts = Prompts(encode, limit_bytes=250)
    for caption in ("a", "b", "a", "b", "c", "b", "a"):
        prompts(caption)
    assert asked == ["a", "b", "c", "a"]


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
        dataset="default", number=1, plan="p", catalog="c", segments=(), num_items=0, num_failed=0
    )
