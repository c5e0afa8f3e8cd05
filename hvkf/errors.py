"""What can go wrong, as exceptions that carry the exit code of the process they end.

Exception
└── HvkfError (1)
    ├── BadInput (65)        what the user gave cannot work; retrying cannot help
    │   ├── ConfigError      a setting
    │   ├── MissingModule    a package that this environment lacks
    │   └── DiskFull         no room where the workspace or the scratch folder lies
    ├── CorruptData (65)     stored bytes differ from what their record says
    ├── OwnError (70)        an exception that hvkf does not know: an error of hvkf itself
    ├── AlreadyExists        a conditional write found the place taken (never ends a process)
    ├── TryAgain (75)        an error that may pass: storage away, a peer lost
    ├── GaveWay (76)         a worker ended its part early: somebody more urgent waits
    └── WorkStopped (143)    a worker, a job or a night was stopped; what was done is saved

BaseException
└── Stopped (143)            this process was told to stop; what was done is saved

`Stopped` is no `Exception`, as `KeyboardInterrupt` is none: SIGTERM raises it wherever the process
is, and no `except Exception` around one row or one file may take it for that row's error.
"""

from hvkf.redaction import without_userinfo


class HvkfError(Exception):
    """The base of all errors that hvkf itself raises; its message is one sentence for the user.

    Names and passwords in addresses are left out of it.
    """

    exit_code = 1

    @property
    def details(self) -> tuple[str, ...]:
        """Lines that a terminal shows above the sentence, such as a table."""
        return ()

    def __init__(self, *message: object) -> None:
        super().__init__(*(without_userinfo(str(part)) for part in message))


class BadInput(HvkfError):
    """The input names something that cannot be done; the message says what, where and the fix."""

    exit_code = 65


class ConfigError(BadInput):
    """A setting is unknown, of the wrong type, or contradicts another."""


class MissingModule(BadInput):
    """This Python environment lacks a module, or cannot load it: no further start helps."""


class DiskFull(BadInput):
    """There is no room left to write to."""


class CorruptData(HvkfError):
    """Stored bytes are not those that were recorded when they were written."""

    exit_code = 65


class OwnError(HvkfError):
    """An exception that hvkf does not know; the message says where its traceback lies."""

    exit_code = 70


class AlreadyExists(HvkfError):
    """A write that must create an object found one there."""


class TryAgain(HvkfError):
    """A fault that may pass by itself."""

    exit_code = 75


class GaveWay(HvkfError):
    """A worker ended its part early, for somebody more urgent waits; the rest comes later."""

    exit_code = 76


class WorkStopped(HvkfError):
    """Another process was told to stop, or a night was, and what was done is saved."""

    exit_code = 143


class Stopped(BaseException):
    """This process was told to stop, and stops after saving its work."""

    exit_code = 143
