"""What the system refuses, as sentences that name the place and the fix."""

import errno
from pathlib import Path

from hvkf.errors import BadInput, DiskFull, HvkfError, TryAgain
from hvkf.shown import shown_name

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
NO_FILE = (errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO)
MAY_PASS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY)


def explain_os_error(error: OSError, folder: Path | None = None) -> HvkfError | None:
    """Say what the system refused; None where it is not the surroundings' doing.

    Args:
        error: What was raised.
        folder: What was worked in; left out, the file that the error names.
    """
    place = shown_name(error.filename or folder or "a file")
    if error.errno in NO_ROOM:
        # A write names no file; nobody knows which of the two devices it went to.
        full = shown_name(folder or error.filename or "the workspace or of TMPDIR")
        return DiskFull(
            f"No space left on the device of {full}: free some (`hvkf gc` "
            "shows what nothing refers to), or set `workspace` (or TMPDIR, for scratch files) to "
            "a larger one."
        )
    if error.errno in NOT_ALLOWED:
        reason = "a read-only file system" if error.errno == errno.EROFS else "permission denied"
        return BadInput(
            f"{place} cannot be used: {reason}. Give this user the right to it, or name another "
            "place (`workspace`, HOME, TMPDIR or the command's own option)."
        )
    if error.errno in NO_FOLDER:
        return BadInput(f"{place} cannot be made: a file is where a folder is needed.")
    if error.errno in NO_FILE:
        return BadInput(f"{place} cannot be opened as a file: {error.strerror}.")
    if error.errno in MAY_PASS:
        return TryAgain(f"{place}: {error.strerror}; this may pass, run the command again.")
    return None


def check_is_folder(folder: Path, what: str) -> None:
    """Refuse a path that neither is a folder nor can become one.

    Args:
        folder: The path.
        what: What it is to the user, such as workspace.

    Raises:
        BadInput: it is a file, below one, or cannot be looked at.
    """
    if "\0" in str(folder):
        raise BadInput(f"The {what} {shown_name(folder)!r} cannot be a folder: it has a NUL.")
    for place in (folder, *folder.parents):
        try:
            if place.is_dir():
                return
            is_there = place.exists() or place.is_symlink()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(
                f"The {what} {shown_name(folder)!r} cannot be a folder: {reason}."
            ) from None
        if is_there:
            where = "is a file" if place == folder else f"lies below {shown_name(place)}, a file"
            raise BadInput(f"The {what} {shown_name(folder)!r} {where}: name a folder.")
