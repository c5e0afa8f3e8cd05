"""Writing and reading checkpoints: safetensors and JSON, equal bytes for equal states.

A checkpoint counts when its commit record is put, last; see `hvkf.training.runs`.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch

from hvkf.errors import CorruptData
from hvkf.model.lora_file import save_lora
from hvkf.records import CheckpointRecord, FileEntry, canonical_json
from hvkf.scratch import scratch_folder
from hvkf.storage import Store, explain_full_disk, file_sha256
from hvkf.stored import read_json
from hvkf.stored_kinds import fix_of
from hvkf.training.runs import COMMIT_NAME, read_checkpoint, run_folder, step_name
from hvkf.training.state import Tensors

STATE_NAME = "state.json"
TENSOR_FILES = ("weights", "ema", "optimizer")


class Snapshot(NamedTuple):
    """All that a training needs to go on exactly.

    Attributes:
        lora: The weights to render with, under the names of a LoRA file.
        tensors: File name without suffix (weights, ema, optimizer) to its tensors.
        values: Everything that is not a tensor, as JSON.
    """

    lora: Tensors
    tensors: dict[str, Tensors]
    values: dict[str, Any]


def save_checkpoint(
    store: Store,
    run_id: str,
    step: int,
    snapshot: Snapshot,
    *,
    alpha: float,
    losses_sha256: str | None = None,
) -> CheckpointRecord:
    """Write a checkpoint; one of the same step that is there is replaced, its record first.

    Args:
        store: The workspace.
        run_id: The run.
        step: After how many optimizer steps.
        snapshot: What is written.
        alpha: The LoRA's alpha.
        losses_sha256: Of the losses up to this step; see `hvkf.training.losses.write_losses`.
    """
    prefix = f"{run_folder(run_id)}/{step_name(step)}"
    store.delete(f"{prefix}/{COMMIT_NAME}")
    with scratch_folder("train") as folder:
        with explain_full_disk(folder):
            save_lora(snapshot.lora, folder, alpha=alpha, extra={"run_id": run_id, "step": step})
            for name, tensors in snapshot.tensors.items():
                safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
            (folder / STATE_NAME).write_bytes(canonical_json(snapshot.values) + b"\n")
        files = []
        for file in sorted(folder.iterdir()):
            entry = FileEntry(name=file.name, sha256=file_sha256(file), size=file.stat().st_size)
            files.append(entry)
            store.take(file, f"{prefix}/{file.name}")
    record = CheckpointRecord(step=step, files=tuple(files), losses_sha256=losses_sha256)
    store.put(f"{prefix}/{COMMIT_NAME}", record.to_json())
    return record


def load_checkpoint(store: Store, run_id: str, step: int) -> Snapshot:
    """Read what a training goes on from; `lora` is left empty.

    Raises:
        CorruptData: a file is gone, or has other bytes than were recorded.
    """
    record = read_checkpoint(store, run_id, step)
    prefix = f"{run_folder(run_id)}/{step_name(step)}"
    tensors = {}
    values: dict[str, Any] = {}
    for entry in record.files:
        name = Path(entry.name).stem
        if entry.name == STATE_NAME:
            with _local_copy(store, prefix, entry) as file:
                where = f"{store.url}/{prefix}/{entry.name}"
                values = read_json(file.read_bytes(), where, fix_of(f"{prefix}/{entry.name}"))
        elif name in TENSOR_FILES:
            with _local_copy(store, prefix, entry) as file:
                tensors[name] = safetensors.torch.load_file(file)
    return Snapshot({}, tensors, values)


@contextmanager
def _local_copy(store: Store, prefix: str, entry: FileEntry) -> Iterator[Path]:
    """Give a checked file of a checkpoint on this machine."""
    path = f"{prefix}/{entry.name}"
    with scratch_folder("train") as folder:
        file = store.local_path(path)
        if file is None:
            file = folder / entry.name
            with contextlib.suppress(FileNotFoundError):
                store.download(path, file)
        if not file.is_file() or file_sha256(file) != entry.sha256:
            raise CorruptData(
                f"{store.url}/{path} is gone or has other bytes than were recorded: restore it, or "
                f"delete {prefix}/{COMMIT_NAME}, so that the run goes on from an older checkpoint."
            )
        yield file
