"""Files that users name, opened so that none can hang a process or end it with a traceback.

A path in a table, a manifest or a setting may be anything: a FIFO that nobody writes to, a device,
a name that no file can have.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from hvkf.errors import BadInput

MAX_SHOWN = 120
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading, without waiting for anything.

    Raises:
        OSError: it cannot be opened, or is a folder, named pipe, socket or device.
    """
    # Without O_NONBLOCK, opening a named pipe waits until somebody writes to it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # so the system answers for a socket
            raise _not_regular(path, stat.S_IFSOCK) from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise _not_regular(path, stat.S_IFMT(mode))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _not_regular(path: str | Path, kind: int) -> OSError:
    what = KINDS.get(kind, "a special file")
    return OSError(errno.EINVAL, f"It is {what}, not a regular file", str(path))


def read_regular(path: str | Path, max_bytes: int | None = None) -> bytes:
    """Read a regular file whole.

    Raises:
        OSError: see `open_regular`; with EFBIG, it has more than `max_bytes`.
    """
    with open_regular(path) as file:
        check_size(os.fstat(file.fileno()).st_size, max_bytes, str(path))
        return file.read()


def check_size(size: int, max_bytes: int | None, name: str) -> None:
    """Raise OSError with EFBIG for a file of more than `max_bytes`."""
    if max_bytes is not None and size > max_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)


def expanded(path: str | Path) -> Path:
    """Replace a leading `~` or `~name` by the home folder that it stands for.

    Raises:
        BadInput: there is no such user, or it has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BadInput(
            f"{shortened(str(path))} cannot be read: {reason_of(error)}; write the whole path."
        ) from error


def is_nameable(path: str) -> bool:
    """Say whether a file's name can hold these characters at all."""
    return "\0" not in path and not any("\ud800" <= letter <= "\udfff" for letter in path)


def reason_of(error: Exception) -> str:
    """Say in a few words why a file could not be read, such as `file name too long`."""
    reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return shortened(reason[:1].lower() + reason[1:])


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    """Cut foreign text to what a message can hold, without control characters."""
    cut = text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 4 :]}"
    return cut if cut.isprintable() else ascii(cut)[1:-1]


@contextmanager
def explain_unreadable(what: str, fix: str) -> Iterator[None]:
    """Turn the system's answer about a path into BadInput: `what` cannot be read, and the fix."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        raise BadInput(f"{what} cannot be read: {reason_of(error)}; {fix}.") from error
