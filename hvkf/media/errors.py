"""One video that cannot be used: its error, and the rule that it ends nothing but itself."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hvkf.errors import BadInput, DiskFull, HvkfError
from hvkf.stops import raise_if_told
from hvkf.user_files import reason_of, shortened

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
UNREADABLE_FILE = "unreadable-file"


class MediaFault(BadInput):
    """One video cannot be used; `code` is what its failure is recorded under.

    Codes: `missing`, `unreadable-file` (the system does not give it), `empty`, `truncated`,
    `unreadable` (it is no video), `corrupt` (decoding fails at a frame),
    `no-video-stream`, `zero-size`, `too-large`, `size-changes`, `too-short` (it lacks a frame asked
    for), `odd-aspect`, `unknown-colours`, `dolby-vision`, `hdr`, `interlaced`, `unexpected`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["MediaFault"], tuple[str, str]]:
        return type(self), (self.code, str(self))


@contextmanager
def only_this_file(name: str) -> Iterator[None]:
    """Turn whatever goes wrong while one file is looked at into that file's own error.

    The project's own errors pass: those that concern the stage (no room, storage away) must end
    it. So do a lack of memory and a package that is not installed, which are no file's doing.

    Raises:
        MediaFault: something that nobody expected went wrong; it names the file and the error.
        DiskFull: there is no room for a copy of the file.
    """
    try:
        yield
    except (HvkfError, MemoryError, ImportError):
        raise_if_told()
        raise
    except OSError as error:
        raise_if_told()
        if error.errno in NO_ROOM:
            raise DiskFull(f"There is no room to copy {name}: free some space.") from error
        if isinstance(error, FileNotFoundError):
            raise MediaFault("missing", f"there is no file {name}") from error
        raise MediaFault(UNREADABLE_FILE, f"{name} cannot be read: {reason_of(error)}") from error
    except Exception as error:
        raise_if_told()
        # Libraries raise anything on files that nobody thought of.
        reason = f"{type(error).__name__}: {shortened(str(error))}"
        message = f"{name} cannot be used ({reason}); convert it or remove its row"
        raise MediaFault("unexpected", message) from error
