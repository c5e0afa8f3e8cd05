"""Scratch folders for what is large: a killed process leaves none for ever."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def make_scratch(kind: str) -> Path:
    """Make an empty folder of this process; those of one kind whose processes are gone go.

    The caller removes it.
    """
    prefix = f"hvkf-{kind}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
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
