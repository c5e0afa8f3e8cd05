"""What a LoRA has seen is known from its run, or from the list beside its file."""

from pathlib import Path
from typing import Any

import pytest

from hvkf.demo import CONTROL_LORA, FIRST_PAIR, FIRST_SHAPE, NUM_SHAPES
from hvkf.errors import CorruptData
from hvkf.loras import resolve_lora
from hvkf.shapes import write_dataset
from hvkf.storage import FolderStore, file_sha256
from hvkf.training.lineage import (
    BESIDE,
    TrainedOn,
    TrainedOnFile,
    lineage_path,
    read_lineage,
    write_lineage,
)
from tests.workspaces import GOLDEN

LORA = GOLDEN / "lora_r4_a8.sft"
NOTHING: dict[str, Any] = {"kind": "mds", "folders": []}
SEEN = TrainedOn(sources=("5" * 64,))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "workspace")


def heir_of(store: FolderStore, spec: str) -> TrainedOn:
    """What is known of a run that begins from a LoRA."""
    write_lineage(store, "heir", NOTHING, resolve_lora(spec, store))
    found = read_lineage(store, "heir")
    assert found is not None
    return found


def put_beside(folder: Path, sha256: str) -> str:
    file = folder / "lora.sft"
    file.write_bytes(LORA.read_bytes())
    listed = TrainedOnFile(lora_sha256=sha256, trained_on=SEEN)
    (folder / BESIDE).write_bytes(listed.to_json())
    return str(file)


def test_the_videos_of_a_file_are_those_of_the_list_beside_it(
    tmp_path: Path, store: FolderStore
) -> None:
    spec = put_beside(tmp_path, file_sha256(LORA))
    assert heir_of(store, spec) == SEEN
    assert store.exists(lineage_path("heir"))


def test_a_list_of_another_lora_or_none_leaves_its_videos_unknown(
    tmp_path: Path, store: FolderStore
) -> None:
    spec = put_beside(tmp_path, "0" * 64)
    unknown = (f"the LoRA {spec} that it began from",)
    assert heir_of(store, spec).unknown == unknown
    (tmp_path / BESIDE).unlink()
    assert heir_of(store, spec).unknown == unknown


def test_a_damaged_list_is_said(tmp_path: Path, store: FolderStore) -> None:
    spec = put_beside(tmp_path, file_sha256(LORA))
    (tmp_path / BESIDE).write_text("{")
    with pytest.raises(CorruptData, match=r"trained_on\.json.*restore it"):
        heir_of(store, spec)


def test_the_packaged_lora_is_known_and_saw_none_of_the_demos_videos(
    tmp_path: Path, store: FolderStore
) -> None:
    """The demo's gate said that the packaged LoRA's videos are unknown."""
    found = heir_of(store, str(CONTROL_LORA))
    assert found.unknown == ()
    assert len(found.sources) == 2560
    for first, count in ((FIRST_SHAPE, 3), (FIRST_SHAPE + NUM_SHAPES - 1, 1), (FIRST_PAIR, 1)):
        write_dataset(tmp_path / str(first), count, 17, 0, first_index=first)
    shown = {file_sha256(file) for file in tmp_path.rglob("*.mp4")}
    assert len(shown) == 5
    assert shown.isdisjoint(found.sources)
