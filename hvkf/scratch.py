"""Scratch folders for what is large: a killed process leaves none for ever."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hvkf.errors import BadInput
from hvkf.shown import shown


def scratch_root() -> Path:
    """Return the folder of temporary files; Python itself passes over a TMPDIR that is not there.

    Raises:
        BadInput: TMPDIR names no folder that can be written.
    """
    named = os.environ.get("TMPDIR")
    if named and not (Path(named).is_dir() and os.access(named, os.W_OK | os.X_OK)):
        raise BadInput(
            f"TMPDIR is {shown(named)}, which is no folder that this user may write to: make it, "
            "or set TMPDIR to another."
        )
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise BadInput(
            "There is no folder for temporary files (/tmp cannot be written): set TMPDIR to one."
        ) from None


def make_scratch(kind: str) -> Path:
    """Make an empty folder of this process; those of one kind whose processes are gone go.

    The caller removes it.
    """
    prefix = f"hvkf-{kind}-"
    for left in scratch_root().glob(f"{prefix}*"):
        owner = left.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))


@contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """Give an empty folder for a while."""
    folder = make_scratch(kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
