"""SIGTERM: a worker is told to stop, at any moment, also within another library's code.

The signal's handler raises `Stopped` wherever the main thread is. Where that is a library's own
callback, the library may turn it into another error: safetensors answers "could not determine the
shape", PyAV an error of the file. So whoever would keep such an error, as a row's or a file's
failure or as a process's exit code, asks here first.
"""

import signal

from hvkf.errors import Stopped

_told = False


def listen() -> None:
    """Stop this process when SIGTERM comes."""
    signal.signal(signal.SIGTERM, stop)


def stop(signum: int, frame: object) -> None:
    """Answer the signal.

    Raises:
        Stopped: always.
    """
    global _told
    # Once: a second signal (a process group and its parent both send one) must not cut off the
    # saving of what was done. Who cannot wait for it sends SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _told = True
    raise _stopped()


def raise_if_told() -> None:
    """End what is under way, if this process was told to stop and something swallowed it.

    Raises:
        Stopped: it was told.
    """
    if _told:
        raise _stopped()


def cause_of_end(error: Exception) -> Exception | Stopped:
    """Return why a process ends: the stop that it was told, if it was, else its error."""
    return _stopped() if _told else error


def _stopped() -> Stopped:
    return Stopped("Told to stop; the same command goes on from here.")
