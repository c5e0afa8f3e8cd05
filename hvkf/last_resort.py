"""What a command says of an exception that nobody foresaw: a sentence, and a file with the rest."""

import os
import sys
import tempfile
import time
import traceback

from hvkf.errors import HvkfError, OwnError
from hvkf.os_errors import explain_os_error
from hvkf.redaction import without_secrets
from hvkf.shown import cut, shown_name
from hvkf.verbosity import Verbosity, verbosity

IN_POD = "KUBERNETES_SERVICE_HOST"


def explain_unknown(error: Exception) -> HvkfError:
    """Turn an exception that is none of hvkf's into one that ends the process with a sentence.

    A file that may not be written is of the surroundings. All else is an error of hvkf: its
    traceback is kept in a file, or in a pod's log, for the file would go with the pod.
    """
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
    if verbosity() == Verbosity.VERBOSE:
        print(text, file=sys.stderr)
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
