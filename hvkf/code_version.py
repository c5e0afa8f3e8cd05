"""Which hvkf this is: the release, and a digest of its sources, which no one forgets to raise."""

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

NUM_DIGITS = 12


@cache
def code_version() -> str:
    """Name the code that runs, such as `0.1.0+4f1e02c93a7b`; equal files give an equal name."""
    hashed = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        hashed.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return f"{importlib.metadata.version('hvkf')}+{hashed.hexdigest()[:NUM_DIGITS]}"
