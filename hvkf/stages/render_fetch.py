"""Copying a manifest's videos to a folder, under the names that its rows gave them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hvkf.errors import BadInput, CorruptData
from hvkf.progress import progress
from hvkf.records import FileEntry
from hvkf.stages.render_records import (
    DESCRIPTION_NAME,
    VIDEO_NAME,
    RenderRecord,
    record_path,
    render_folder,
)
from hvkf.storage import Store, file_sha256
from hvkf.stored import open_parquet, read_record

RESULTS_NAME = "results.parquet"
COLUMNS = ["id", "state", "identity"]
NUM_READERS = 8
MAX_SHOWN_RENDERS = 5
MAX_NAME_BYTES = 200
SHOWN_IDENTITY_LENGTH = 8


class Fetched(NamedTuple):
    """How many videos were copied, were there already, and could not be made."""

    num_copied: int
    num_there: int
    num_failed: int


class _Wanted(NamedTuple):
    """A video by its identity, and the name of its files."""

    identity: str
    name: str


def find_render(store: Store, name: str) -> str:
    """Find a manifest's folder by the name of its render, or by how that begins.

    Raises:
        BadInput: none or several are meant, or its results are not written yet.
    """
    paths = list(store.list("manifests"))
    folders = {path.rpartition("/")[0] for path in paths if "/rows-" in path}
    found = sorted(folder for folder in folders if name and folder.split("/")[1].startswith(name))
    finished = [path.split("/")[1] for path in paths if path.endswith(f"/{RESULTS_NAME}")]
    there = ", ".join(finished[-MAX_SHOWN_RENDERS:]) or "none yet"
    if len(found) != 1:
        meant = "several renders begin with" if found else "there is no render"
        raise BadInput(
            f"In {store.url} {meant} {name!r}: give the name that `hvkf submit` said (renders "
            f"with results: {there})."
        )
    if f"{found[0]}/{RESULTS_NAME}" not in paths:
        raise BadInput(
            f"The render {name} in {store.url} has no results yet: run `hvkf submit` with its "
            f"manifest again to finish it (renders with results: {there})."
        )
    return found[0]


def fetch(store: Store, name: str, folder: Path) -> Fetched:
    """Copy `<id>.mp4` and `<id>.json` of every rendered row, and the table of results.

    Files that have the recorded bytes already are left, so that the same command goes on where it
    was stopped. An id that is too long, or the same as another but for upper case, gets the
    beginning of its video's identity.

    Raises:
        BadInput: see `find_render`; the folder cannot be made.
        CorruptData: what is stored is not what was recorded.
    """
    root = find_render(store, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise BadInput(
            f"The folder {folder} cannot be made ({fault.strerror}): give another one."
        ) from None
    with open_parquet(store, f"{root}/{RESULTS_NAME}") as results:
        rows = results.read(COLUMNS, use_threads=False).to_pylist()
    wanted = list(_named([row for row in rows if row["state"] == "rendered"]))
    copied = 0
    with progress("fetch", len(wanted)) as shown, ThreadPoolExecutor(NUM_READERS) as readers:
        for is_new in readers.map(lambda one: _copy(store, one, folder), wanted):
            copied += is_new
            shown.advance()
    store.download(f"{root}/{RESULTS_NAME}", folder / RESULTS_NAME)
    return Fetched(copied, len(wanted) - copied, len(rows) - len(wanted))


def _named(rows: list[dict[str, Any]]) -> Iterator[_Wanted]:
    taken: set[str] = set()
    for row in rows:
        name = row["id"]
        if len(name.encode()) > MAX_NAME_BYTES or name.casefold() in taken:
            cut = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
            name = f"{cut}-{row['identity'][:SHOWN_IDENTITY_LENGTH]}"
        taken.add(name.casefold())
        yield _Wanted(row["identity"], name)


def _copy(store: Store, one: _Wanted, folder: Path) -> bool:
    """Copy a video and its description; False when both were there."""
    try:
        record = read_record(store, record_path(one.identity), RenderRecord)
    except FileNotFoundError:
        raise BadInput(
            f"The record of {one.name} is gone from {store.url}: its row is tried again; fetch "
            "when `hvkf submit` has ended."
        ) from None
    entries = {entry.name: entry for entry in record.files}
    prefix = render_folder(one.identity)
    copies = [
        _copy_file(store, f"{prefix}/{name}", entries[name], folder / f"{one.name}{suffix}")
        for name, suffix in ((VIDEO_NAME, ".mp4"), (DESCRIPTION_NAME, ".json"))
    ]
    return any(copies)


def _copy_file(store: Store, path: str, entry: FileEntry, file: Path) -> bool:
    if file.is_file() and file_sha256(file) == entry.sha256:
        return False
    try:
        store.download(path, file)
    except FileNotFoundError:
        raise CorruptData(
            f"{store.url}/{path} is gone although it is recorded: restore it."
        ) from None
    if file_sha256(file) != entry.sha256:
        file.unlink()
        raise CorruptData(
            f"{store.url}/{path} has other bytes than were recorded: `hvkf verify` lists all such "
            "files; restore them."
        )
    return True
