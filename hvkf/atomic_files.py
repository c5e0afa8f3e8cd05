"""What a workspace in a folder rests on: a file appears whole or not at all, and locks.

Not every file system has hard links (exFAT, many shares) or locks (some network mounts).
"""

import ctypes
import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

from hvkf.errors import BadInput

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
NO_RENAMES = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
AT_FDCWD = -100
RENAME_NOREPLACE = 1


def link_new(file: Path, target: Path) -> None:
    """Let a file of the same folder appear under a name that nobody has taken.

    By a hard link; where there are none, by a rename that replaces nothing.

    Raises:
        FileExistsError: the name is taken.
        BadInput: the file system can do neither.
    """
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _rename_new(file, target)


def _rename_new(file: Path, target: Path) -> None:
    """Rename a file to a name that nobody has taken, as one step of the file system."""
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)  # of Linux
    code = errno.ENOSYS
    if rename is not None:
        names = AT_FDCWD, os.fsencode(file), AT_FDCWD, os.fsencode(target)
        code = ctypes.get_errno() if rename(*names, RENAME_NOREPLACE) else 0
    if code in NO_RENAMES:
        raise BadInput(
            f"The file system of {target.parent} has neither hard links nor renames that replace "
            "nothing, so that two workers could overwrite each other's records: put the workspace "
            "on another one (ext4, XFS, NFS), or into S3 (s3://bucket/prefix)."
        )
    if code:
        raise OSError(code, os.strerror(code), str(target))


def lock(file: IO[str], flags: int = fcntl.LOCK_EX) -> None:
    """Lock an open file; the kernel lets go of it when its holder is killed.

    Raises:
        BlockingIOError: another one holds it, and `flags` says not to wait.
        BadInput: the file system has no locks.
    """
    try:
        fcntl.flock(file, flags)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise BadInput(
            f"The file system of {Path(file.name).parent} has no locks ({error.strerror}): put the "
            "workspace on another one, mount it with locks (NFS: lockd), or use s3://bucket/prefix."
        ) from error


def what_folder_lacks(folder: Path) -> str | None:
    """Try in a folder that is there what a workspace needs; return what it lacks, or None.

    Raises:
        OSError: nothing can be written there.
    """
    with tempfile.TemporaryDirectory(prefix=".hvkf-try-", dir=folder) as name:
        try:
            for attempt in (_try_link, _try_lock):
                attempt(Path(name))
        except BadInput as error:
            return str(error)
    return None


def _try_link(folder: Path) -> None:
    for text in ("first", "second"):
        (folder / text).write_text(text)
    link_new(folder / "first", folder / "target")
    try:
        link_new(folder / "second", folder / "target")
    except FileExistsError:
        return
    raise BadInput(f"The file system of {folder.parent} lets a new file replace one that is there.")


def _try_lock(folder: Path) -> None:
    with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
        lock(first)
        try:
            lock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise BadInput(f"The file system of {folder.parent} gives one lock to two at once.")
