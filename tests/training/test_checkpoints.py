from pathlib import Path
from typing import Any

import pytest
import torch

from hvkf.errors import CorruptData
from hvkf.model.lora_file import read_lora
from hvkf.storage import FolderStore, file_sha256
from hvkf.training.checkpoints import Snapshot, load_checkpoint, save_checkpoint
from hvkf.training.runs import Checkpoints, list_checkpoints, read_checkpoint

FOLDER = "runs/r/step-00000005"


def make_snapshot(value: float = 1.0) -> Snapshot:
    lora = {
        "to_q.lora_A.weight": torch.full((2, 8), value),
        "to_q.lora_B.weight": torch.full((8, 2), value),
    }
    # Written in another order than they are named: bytes must not depend on it.
    state = {name: torch.full((2,), value, dtype=torch.bfloat16) for name in ("z", "a")}
    values: dict[str, Any] = {"scheduler": {"last_epoch": 5, "rate": 0.1}, "scaler": None}
    return Snapshot(lora, {"weights": lora, "optimizer": state}, values)


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    store, saved = FolderStore(tmp_path), make_snapshot(1 / 3)
    save_checkpoint(store, "r", 5, saved, alpha=4)
    found = load_checkpoint(store, "r", 5)
    assert found.values == saved.values
    for name, tensors in saved.tensors.items():
        assert found.tensors[name].keys() == tensors.keys()
        assert all(found.tensors[name][key].equal(tensor) for key, tensor in tensors.items())
    lora = read_lora(tmp_path / FOLDER)
    assert (lora.alpha, lora.rank) == (4, 2)


def test_equal_states_are_equal_bytes_and_the_record_holds_their_hashes(tmp_path: Path) -> None:
    records = [
        save_checkpoint(FolderStore(tmp_path / name), "r", 5, make_snapshot(), alpha=4)
        for name in "ab"
    ]
    assert records[0] == records[1] == read_checkpoint(FolderStore(tmp_path / "a"), "r", 5)
    for entry in records[0].files:
        assert file_sha256(tmp_path / "b" / FOLDER / entry.name) == entry.sha256
    assert {file.suffix for file in (tmp_path / "a" / FOLDER).iterdir()} == {
        ".safetensors",
        ".json",
    }


def test_a_checkpoint_that_is_being_replaced_does_not_count(tmp_path: Path) -> None:
    class Failing(FolderStore):
        def take(self, file: Path, path: str) -> None:
            if "weights.safetensors" in path:
                raise OSError("gone")
            super().take(file, path)

    save_checkpoint(FolderStore(tmp_path), "r", 5, make_snapshot(), alpha=4)
    with pytest.raises(OSError, match="gone"):
        save_checkpoint(Failing(tmp_path), "r", 5, make_snapshot(2.0), alpha=4)
    assert list_checkpoints(FolderStore(tmp_path), "r") == Checkpoints(whole=(), partial=(5,))


def test_a_missing_file_is_named_with_the_fix(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    save_checkpoint(store, "r", 5, make_snapshot(), alpha=4)
    store.delete(f"{FOLDER}/weights.safetensors")
    with pytest.raises(CorruptData, match=rf"{FOLDER}/weights.safetensors is gone.*commit.json"):
        load_checkpoint(store, "r", 5)
