"""What was completed, so that `hvkf verify` can tell a record that is gone from one not made yet.

What has no record does not exist: a stage makes it again without a word. So each record that
completes something, and that no other record names, gets an entry of its own here, put after it.
Who deletes such a record on purpose deletes its entry first.
"""

import contextlib

from hvkf.errors import AlreadyExists
from hvkf.records import Record, digest
from hvkf.storage import Store
from hvkf.stored import read_record
from hvkf.stored_kinds import kind_of

FOLDER = "journal"


class JournalEntry(Record):
    """The path of a record that was completed."""

    path: str


def entry_path(path: str) -> str:
    """Where the entry of a record lies."""
    return f"{FOLDER}/{digest(path)}.json"


def note_completed(store: Store, path: str) -> None:
    """Remember that a record was put; its entry is written once."""
    if _is_noted(path):
        with contextlib.suppress(AlreadyExists):
            store.put_new(entry_path(path), JournalEntry(path=path).to_json())


def delete_record(store: Store, path: str) -> None:
    """Delete a record on purpose: its entry first, so that nothing misses it."""
    if _is_noted(path):
        store.delete(entry_path(path))
    store.delete(path)


def forget_deleted(store: Store, prefix: str) -> list[str]:
    """Forget what was deleted on purpose, by hand: entries of records that are gone.

    Args:
        store: The workspace.
        prefix: A record's path, or a folder.

    Returns:
        The records that were forgotten.
    """
    forgotten = []
    for path in list(store.list(FOLDER)):
        record = read_record(store, path, JournalEntry).path
        if f"{record}/".startswith(f"{prefix.rstrip('/')}/") and not store.exists(record):
            store.delete(path)
            forgotten.append(record)
    return forgotten


def _is_noted(path: str) -> bool:
    kind = kind_of(path)
    return kind is not None and kind.absence == "journal"
