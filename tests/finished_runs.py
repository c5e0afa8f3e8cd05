"""Runs that look finished: the golden LoRA as the checkpoint that training ended with."""

import tempfile
from pathlib import Path

from hvkf.model.lora_file import read_lora, save_lora
from hvkf.records import CheckpointRecord, FileEntry, TrainResult
from hvkf.storage import Store, file_sha256
from hvkf.training.lineage import TrainedOn, lineage_path
from hvkf.training.losses import write_losses
from tests.workspaces import GOLDEN


def write_checkpoint(store: Store, run_id: str, step: int, scale: float = 1.0) -> str:
    """Put a whole checkpoint of the golden LoRA, its weights times `scale`; return its folder."""
    folder = f"runs/{run_id}/step-{step:08d}"
    weights = {
        name: weight * scale
        for name, weight in read_lora(GOLDEN / "lora_r4_a8.sft").weights.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = save_lora(weights, Path(scratch), alpha=8)
        entry = FileEntry(name=file.name, sha256=file_sha256(file), size=file.stat().st_size)
        store.upload(file, f"{folder}/{file.name}")
    store.put(f"{folder}/commit.json", CheckpointRecord(step=step, files=(entry,)).to_json())
    return folder


def write_run(store: Store, run_id: str, step: int = 4, scale: float = 1.0) -> str:
    """Put a finished run whose last checkpoint is of `step`; return the LoRA's path."""
    folder = write_checkpoint(store, run_id, step, scale)
    result = TrainResult(
        run_id=run_id,
        digest="0" * 32,
        num_steps=step,
        num_epochs=1,
        num_items=4,
        num_holdout=2,
        checkpoint=folder,
        lora=f"{folder}/pytorch_lora_weights.safetensors",
        loss=1.0,
        validation_loss=None,
    )
    write_losses(store, run_id, [{"step": number + 1, "loss": 1.0} for number in range(step)])
    store.put(lineage_path(run_id), TrainedOn(sources=()).to_json())
    store.put(f"runs/{run_id}/result.json", result.to_json())
    return result.lora
