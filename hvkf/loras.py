"""Which LoRA is meant, and where its file is: in a run, the workspace, this machine, or nowhere."""

import re
from pathlib import Path

from hvkf.errors import BadInput, CorruptData
from hvkf.model_source import WORKSPACE_SCHEME, cache_folder
from hvkf.records import CheckpointRecord, Record, TrainResult
from hvkf.registry import LORA_FILE_NAME, check_lora, pick_version, read_registered
from hvkf.storage import Store, file_sha256, object_sha256
from hvkf.stored import read_record
from hvkf.user_files import expanded, is_nameable, reason_of, shortened

NONE = "none"
RUN_SCHEME = "run:"
REGISTRY_SCHEME = "registry:"
LORA_SUFFIXES = (".safetensors", ".sft")
VERSION_NUMBER = re.compile(r"[0-9]{1,9}")
CHECKPOINT_NAME = re.compile(r"step-\d{8,}")
MAX_SHOWN_RUNS = 5
MAX_REGISTERED_NAME = 100


class Lora(Record):
    """A LoRA file by where it lies and by its content; the base model has neither.

    `location` is a path of this machine, or workspace:PATH. `run_id` and `checkpoint` (such as
    step-00000500) are set where a training run of this workspace made it.
    """

    name: str
    location: str | None = None
    sha256: str | None = None
    run_id: str | None = None
    checkpoint: str | None = None


def resolve_lora(spec: str, store: Store) -> Lora:
    """Find the LoRA that a setting means, and hash it; nothing is loaded.

    Args:
        spec: `none`; `registry:NAME` (what is in use under that name); `registry:NAME@3` (its
            version 3); `run:RUN_ID` (its final step); `run:RUN_ID/step-00000500`;
            `workspace:PATH`; or the path of a file or folder of this machine.
        store: The workspace.

    Raises:
        BadInput: there is no such LoRA, or the run has no result yet.
        CorruptData: a registered LoRA is gone, or its bytes are not those that were promoted.
    """
    if spec == NONE:
        return Lora(name=NONE)
    what = f"The LoRA {shortened(spec)!r}"
    if not is_nameable(spec):
        raise BadInput(f"{what} has characters that no file's name can have: correct it.")
    try:
        return _resolve(spec, store)
    except OSError as error:
        raise BadInput(f"{what} cannot be read: {reason_of(error)}; name another.") from error


def _resolve(spec: str, store: Store) -> Lora:
    if spec.startswith(REGISTRY_SCHEME):
        name, _, number = spec.removeprefix(REGISTRY_SCHEME).partition("@")
        return registered_lora(store, name, number or None)
    if spec.startswith(RUN_SCHEME):
        run_id, _, checkpoint = spec.removeprefix(RUN_SCHEME).partition("/")
        return run_lora(store, run_id, checkpoint or None)
    if spec.startswith(WORKSPACE_SCHEME):
        path = _workspace_file(spec.removeprefix(WORKSPACE_SCHEME), store)
        return Lora(name=spec, location=WORKSPACE_SCHEME + path, sha256=object_sha256(store, path))
    file = _local_file(spec)
    return Lora(name=spec, location=str(file), sha256=file_sha256(file))


def registered_lora(store: Store, name: str, number: str | None = None) -> Lora:
    """Find the LoRA in use under a registered name, or one of its versions; its name tells which.

    Raises:
        BadInput: no such name or version.
        CorruptData: the LoRA is gone, or its bytes are not those that were promoted.
    """
    if len(name) > MAX_REGISTERED_NAME:
        raise BadInput(f"{shortened(name)!r} is too long for a registry's name: correct it.")
    if number is not None and not VERSION_NUMBER.fullmatch(number):
        raise BadInput(
            f"{shortened(number)!r} is no version: write {REGISTRY_SCHEME}{shortened(name)}@3."
        )
    version = pick_version(read_registered(store, name), None if number is None else int(number))
    return Lora(
        name=f"{REGISTRY_SCHEME}{name}@{version.version}",
        location=WORKSPACE_SCHEME + check_lora(store, name, version),
        sha256=version.lora_sha256,
        run_id=version.run_id,
        checkpoint=version.checkpoint,
    )


def run_lora(store: Store, run_id: str, checkpoint: str | None = None) -> Lora:
    """Find the LoRA of a run: of the named checkpoint, or of its end.

    Raises:
        BadInput: no such run or checkpoint, or the run has not finished.
    """
    if checkpoint is not None and not CHECKPOINT_NAME.fullmatch(checkpoint):
        raise BadInput(
            f"{shortened(checkpoint)!r} names no checkpoint: write run:RUN_ID/step-00000500."
        )
    name = checkpoint or _final_checkpoint(store, run_id)
    folder = f"runs/{run_id}/{name}"
    try:
        record = read_record(store, f"{folder}/commit.json", CheckpointRecord)
    except FileNotFoundError:
        there = ", ".join(_checkpoints(store, run_id)[-MAX_SHOWN_RUNS:]) or "none"
        raise BadInput(
            f"There is no whole checkpoint {shortened(folder)} in {store.url}; those of the run: "
            f"{there}."
        ) from None
    hashes = {entry.name: entry.sha256 for entry in record.files}
    if LORA_FILE_NAME not in hashes:
        raise CorruptData(f"The checkpoint {store.url}/{folder} has no {LORA_FILE_NAME}.")
    return Lora(
        name=f"{RUN_SCHEME}{run_id}/{name}",
        location=f"{WORKSPACE_SCHEME}{folder}/{LORA_FILE_NAME}",
        sha256=hashes[LORA_FILE_NAME],
        run_id=run_id,
        checkpoint=name,
    )


def local_lora_file(lora: Lora, store: Store) -> Path | None:
    """Give the LoRA's file on this machine, fetched if need be; None for the base model.

    Raises:
        CorruptData: its bytes are not those that were hashed when it was resolved.
    """
    if lora.location is None:
        return None
    if not lora.location.startswith(WORKSPACE_SCHEME):
        file = Path(lora.location)
    else:
        path = lora.location.removeprefix(WORKSPACE_SCHEME)
        local = store.local_path(path)
        file = local or cache_folder() / "loras" / str(lora.sha256) / Path(path).name
        if local is None and not file.exists():
            store.download(path, file)
    try:
        found = file_sha256(file)
    except FileNotFoundError:
        raise BadInput(f"The LoRA {lora.name} is gone: there is no file {file}.") from None
    except OSError as error:
        raise BadInput(f"The LoRA {file} cannot be read: {reason_of(error)}.") from error
    if found != lora.sha256:
        raise CorruptData(
            f"The LoRA {file} changed since this work was planned: plan again, or restore it."
        )
    return file


def _final_checkpoint(store: Store, run_id: str) -> str:
    try:
        result = read_record(store, f"runs/{run_id}/result.json", TrainResult)
    except FileNotFoundError:
        if checkpoints := _checkpoints(store, run_id):
            raise BadInput(
                f"The run {shortened(run_id)!r} has not finished: run `hvkf train` again with the "
                f"same configuration, or name a checkpoint as run:{run_id}/{checkpoints[-1]}."
            ) from None
        there = ", ".join(_finished_runs(store)[-MAX_SHOWN_RUNS:]) or "none yet"
        raise BadInput(
            f"There is no run {shortened(run_id)!r} in {store.url} (finished runs: {there}): run "
            "`hvkf train` first, or name another run or LoRA."
        ) from None
    return result.checkpoint.rpartition("/")[2]


def _finished_runs(store: Store) -> list[str]:
    return [path.split("/")[1] for path in store.list("runs") if path.endswith("/result.json")]


def _checkpoints(store: Store, run_id: str) -> list[str]:
    paths = store.list(f"runs/{run_id}")
    return [path.split("/")[2] for path in paths if path.endswith("/commit.json")]


def _workspace_file(path: str, store: Store) -> str:
    if store.exists(path):
        return path
    found = [name for name in store.list(path) if name.endswith(LORA_SUFFIXES)]
    return f"{path}/{_only([Path(name).name for name in found], f'{store.url}/{path}')}"


def _local_file(spec: str) -> Path:
    path = expanded(spec)
    if path.is_dir():
        found = [file.name for file in sorted(path.iterdir()) if file.suffix in LORA_SUFFIXES]
        return path / _only(found, str(path))
    if not path.is_file():
        raise BadInput(
            f"There is no LoRA {shortened(spec)!r}: give a .safetensors or .sft file, a folder "
            "with one, registry:NAME, run:RUN_ID, workspace:PATH, or none."
        )
    if path.suffix not in LORA_SUFFIXES:
        raise BadInput(
            f"{shortened(spec)} is not a .safetensors or .sft file; pickled weights are never "
            "loaded: convert it where it was made."
        )
    return path


def _only(names: list[str], folder: str) -> str:
    if LORA_FILE_NAME in names:
        return LORA_FILE_NAME
    if len(names) != 1:
        raise BadInput(
            f"{shortened(folder)} holds {len(names)} LoRA files where one is expected: name the "
            "file."
        )
    return names[0]
