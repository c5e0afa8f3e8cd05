"""Where a checkpoint is, and what names it.

It is a hub id, a folder, a folder of the workspace, or `hvkf-tiny`, which comes with the package.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hvkf.atomic_files import lock as lock_file
from hvkf.errors import BadInput
from hvkf.records import digest
from hvkf.settings.experiment import ModelConfig
from hvkf.storage import FolderStore, Store
from hvkf.user_files import expanded, explain_unreadable, shortened

WORKSPACE_SCHEME = "workspace:"
PACKAGED = {"hvkf-tiny": Path(__file__).parent / "assets" / "hvkf-tiny"}
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
HUNYUAN_SHIFT = 7.0
MAX_SHIFT = 1000
WHOLE_FILE_LIMIT_BYTES = 64 << 20
SAMPLE_BYTES = 1 << 20
TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def model_folder_or_hub_id(model: ModelConfig, store: Store) -> str:
    """Return what diffusers' `from_pretrained` takes; a workspace's folder is fetched first.

    Raises:
        BadInput: the folder does not exist.
    """
    name = model.pretrained_model_name_or_path
    if name.startswith(WORKSPACE_SCHEME):
        return str(_workspace_folder(name.removeprefix(WORKSPACE_SCHEME), store))
    with explain_unreadable(f"The checkpoint {shortened(name)!r}", "correct its path"):
        folder = expanded(name)
        if folder.is_dir():
            return str(folder)
    if name in PACKAGED:
        return str(PACKAGED[name])
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(
            f"There is no checkpoint folder {shortened(name)!r}: set "
            "model.pretrained_model_name_or_path to a folder, a hub id such as "
            f"hunyuanvideo-community/HunyuanVideo, workspace:PATH, or {', '.join(PACKAGED)}."
        )
    return name


def _workspace_folder(path: str, store: Store) -> Path:
    names = [name for name in store.list(path) if not name.endswith(".lock")]
    if not names:
        raise BadInput(f"There is no checkpoint at {path!r} in the workspace {store.url}.")
    if isinstance(store, FolderStore):
        return store.root / path
    folder = cache_folder() / "models" / digest([store.url, path])
    with _only_one(folder.with_suffix(".lock")):
        for name in names:
            file = folder / Path(name).relative_to(path)
            if not file.exists():
                store.download(name, file)
    return folder


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Wait until no other process fills the folder: a node's pods share it, and start at once.

    The kernel lets go of the lock when its holder is killed.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        lock_file(held)
        yield


def cache_folder() -> Path:
    """Where this machine keeps what it can fetch again.

    Raises:
        BadInput: neither XDG_CACHE_HOME nor a home folder is known.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "hvkf"
    try:
        return Path.home() / ".cache" / "hvkf"
    except RuntimeError:
        raise BadInput(
            "This user has no home folder: set HOME (or XDG_CACHE_HOME) to a folder that can be "
            "written."
        ) from None


class _File(NamedTuple):
    """A file of a checkpoint that lies here or elsewhere; `read` takes an offset and a size."""

    name: str
    size: int
    read: Callable[[int, int], bytes]


def model_identity(model: ModelConfig, store: Store, parts: Sequence[str]) -> str:
    """Name the given parts of the checkpoint (its subfolders) by content, without loading them.

    Files above 64 MiB count by size and by their first, middle and last MiB: another training run
    changes all of a weights file. No more than that is read of a checkpoint in S3. A hub id counts
    by name and revision.
    """
    path = _path_elsewhere(model, store)
    source = f"{store.url}/{path}" if path is not None else model_folder_or_hub_id(model, store)
    if path is None and not Path(source).is_dir():
        return f"hub:{source}@{model.revision or 'main'}:{model.variant or ''}"
    entries = []
    for part in sorted(parts):
        files = _stored(store, path, part) if path is not None else _local(Path(source), part)
        if not files:
            raise BadInput(
                f"The checkpoint {source} lacks the folder {part!r}; it must have diffusers' "
                "HunyuanVideo layout."
            )
        entries += [[file.name, _file_identity(file)] for file in files]
    return f"folder:{digest(entries)}"


def read_model_file(model: ModelConfig, store: Store, name: str) -> bytes | None:
    """Read one file of the checkpoint, such as tokenizer/tokenizer.json.

    Returns:
        None where the checkpoint has no such file, or is the hub's and not here.
    """
    path = _path_elsewhere(model, store)
    if path is None:
        file = Path(model_folder_or_hub_id(model, store)) / name
        return file.read_bytes() if file.is_file() else None
    try:
        return store.read(f"{path}/{name}")
    except FileNotFoundError:
        return None


def known_shift(model: ModelConfig, store: Store) -> float | None:
    """Give the shift of sampling's noise levels; None where only the hub knows it."""
    if model.flow_shift is not None:
        return model.flow_shift
    if _path_elsewhere(model, store) is None:
        source = model_folder_or_hub_id(model, store)
        if not Path(source).is_dir():
            return None
    content = read_model_file(model, store, SCHEDULER_CONFIG)
    return shift_of(content, model.pretrained_model_name_or_path)


def shift_of(content: bytes | None, checkpoint: str) -> float:
    """Read the shift from the configuration of a checkpoint's scheduler; 7 where it has none.

    Raises:
        BadInput: it is no JSON object, or the shift is no positive number.
    """
    if content is None:
        return HUNYUAN_SHIFT
    where = f"{SCHEDULER_CONFIG} of {shortened(checkpoint)!r}"
    fix = "mend it, or set model.flow_shift"
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        raise BadInput(f"{where} is not JSON: {fix}.") from None
    shift = config.get("shift", HUNYUAN_SHIFT) if isinstance(config, dict) else None
    if isinstance(shift, int | float) and not isinstance(shift, bool) and 0 < shift <= MAX_SHIFT:
        return float(shift)
    raise BadInput(f"{where} has the shift {shortened(str(shift))}, no positive number: {fix}.")


def _path_elsewhere(model: ModelConfig, store: Store) -> str | None:
    """Return where in the workspace a checkpoint lies that this machine does not have."""
    name = model.pretrained_model_name_or_path
    if not name.startswith(WORKSPACE_SCHEME) or isinstance(store, FolderStore):
        return None
    return name.removeprefix(WORKSPACE_SCHEME)


def _local(source: Path, part: str) -> list[_File]:
    def file_of(file: Path) -> _File:
        def read(start: int, size: int) -> bytes:
            with file.open("rb") as content:
                content.seek(start)
                return content.read(size)

        return _File(str(file.relative_to(source)), file.stat().st_size, read)

    return [file_of(file) for file in sorted((source / part).rglob("*")) if file.is_file()]


def _stored(store: Store, path: str, part: str) -> list[_File]:
    def file_of(name: str) -> _File:
        relative = str(PurePosixPath(name).relative_to(path))
        return _File(relative, store.stat(name).size, partial(store.read_range, name))

    names = [name for name in store.list(f"{path}/{part}") if not name.endswith(".lock")]
    return [file_of(name) for name in sorted(names, key=PurePosixPath)]


def _file_identity(file: _File) -> str:
    hashed = hashlib.sha256(str(file.size).encode())
    if file.size <= WHOLE_FILE_LIMIT_BYTES:
        hashed.update(file.read(0, file.size) if file.size else b"")
    else:
        for offset in (0, file.size // 2, file.size - SAMPLE_BYTES):
            hashed.update(file.read(offset, SAMPLE_BYTES))
    return hashed.hexdigest()
