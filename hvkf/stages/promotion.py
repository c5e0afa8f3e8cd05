"""Putting a LoRA into use: its file is kept, its card written, and last the registry changed."""

import getpass
import os
import socket
from pathlib import Path

from hvkf.errors import BadInput
from hvkf.loras import Lora, local_lora_file
from hvkf.records import FileEntry
from hvkf.registry import (
    CARD_NAME,
    SAMPLES_NAME,
    Candidate,
    Version,
    keep_lora,
    lora_folder,
    lora_path,
    promote,
)
from hvkf.stages.model_card import draw_samples, model_card
from hvkf.storage import Store
from hvkf.stored import put_file
from hvkf.training.runs import read_run
from hvkf.uses import at_work

RUN_NAME = "run.json"


def person() -> str:
    """Name who runs this process: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def candidate_of(store: Store, lora: Lora, *, decided_by: str, note: str = "") -> Candidate:
    """Gather what is known of a LoRA from the run that made it.

    Raises:
        BadInput: it is the base model, which has no file.
    """
    if lora.sha256 is None:
        raise BadInput("The base model without a LoRA cannot be promoted: name a LoRA.")
    run = None if lora.run_id is None else read_run(store, lora.run_id)
    return Candidate(
        lora_sha256=lora.sha256,
        origin=lora.name,
        run_id=lora.run_id,
        checkpoint=lora.checkpoint,
        decided_by=decided_by,
        data_digest=None if run is None else run.settings.get("latents"),
        config_digest=None if run is None else run.digest,
        note=note,
    )


def put_into_use(
    store: Store, name: str, lora: Lora, candidate: Candidate, *, over: int
) -> Version:
    """Keep a LoRA's file, write its model card beside it, and promote it.

    Raises:
        OutOfDate: meanwhile another version came into use.
        BadInput, CorruptData: the LoRA's file is gone or has other bytes.
    """
    file = local_lora_file(lora, store)
    assert file is not None
    with at_work(store, f"the promotion of {name}"):
        return _put_into_use(store, name, file, lora, candidate, over)


def _put_into_use(
    store: Store, name: str, file: Path, lora: Lora, candidate: Candidate, over: int
) -> Version:
    keep_lora(store, file, candidate.lora_sha256)
    run = None if lora.run_id is None else read_run(store, lora.run_id)
    folder = lora_folder(candidate.lora_sha256)
    files: list[FileEntry] = []
    samples = draw_samples(store, candidate.evaluation)
    if samples is not None:
        files.append(put_file(store, f"{folder}/{SAMPLES_NAME}", samples))
    card = model_card(name, candidate, run, has_samples=samples is not None)
    files.append(put_file(store, f"{folder}/{CARD_NAME}", card.encode()))
    if run is not None:
        files.append(put_file(store, f"{folder}/{RUN_NAME}", run.to_json()))
    kept = candidate.model_copy(update={"files": tuple(files)})
    version = promote(store, name, kept, over=over)
    # `hvkf gc` reads the histories before it deletes: it kept the file, or it is put there again.
    if not store.exists(lora_path(candidate.lora_sha256)):
        keep_lora(store, file, candidate.lora_sha256)
    return version
