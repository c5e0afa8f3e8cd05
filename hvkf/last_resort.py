"""What a command says of an exception that nobody foresaw: a sentence, and a file with the rest."""

import os
import re
import sys
import tempfile
import time
import traceback

from hvkf.errors import BadInput, HvkfError, OwnError
from hvkf.os_errors import explain_os_error
from hvkf.shown import cut, shown_name

SECRET_NAME = re.compile(
    r"(?i)(secret|token|passw|credential|api_?key|access_?key|private_?key|webhook|(^|_)auth)"
)
MIN_SECRET_LENGTH = 6
HIDDEN = "(hidden)"
URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
URL_QUERY = re.compile(r"(https?://[^\s'\"?]+\?)[^\s'\"]+")
IN_POD = "KUBERNETES_SERVICE_HOST"


def without_secrets(text: str) -> str:
    """Hide the values of environment variables that hold secrets, and what URLs hold of such."""
    secrets = {
        value
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_LENGTH
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return URL_QUERY.sub(rf"\1{HIDDEN}", URL_USER.sub(HIDDEN, text))


def explain_unknown(error: Exception) -> HvkfError:
    """Turn an exception that is none of hvkf's into one that ends the process with a sentence.

    A package that is not installed and a file that may not be written are of the surroundings. All
    else is an error of hvkf: its traceback is kept in a file, or in a pod's log, for the file would
    go with the pod.
    """
    if isinstance(error, ModuleNotFoundError):
        return BadInput(
            f"The Python module {error.name!r} is not installed where this runs: `hvkf doctor` "
            "says which package has it."
        )
    if isinstance(error, OSError) and (told := explain_os_error(error)) is not None:
        return told
    lines = traceback.format_exception(error)
    kept = without_secrets("".join(lines))
    summary = cut(without_secrets(" ".join(f"{type(error).__name__}: {error}".split())))
    place = _keep(kept)
    return OwnError(
        f"An error of hvkf itself ({summary}). The traceback is {place}: please report it."
    )


def _keep(text: str) -> str:
    """Write a traceback where it can be found, and say where."""
    if IN_POD not in os.environ:
        try:
            prefix = f"hvkf-error-{time.strftime('%Y%m%d-%H%M%S')}-"
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=".txt")
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:  # no folder of temporary files, or no room: the terminal has to do
            print(f"No file can be written for the traceback: {error}", file=sys.stderr)
        else:
            return f"in {shown_name(name)}"
    print(text, file=sys.stderr)
    return "above"
