"""How much commands say: `--quiet`, `--verbose`, or as usual; their worker processes follow."""

import logging
import os
from enum import StrEnum

VARIABLE = "HVKF_VERBOSITY"


class Verbosity(StrEnum):
    """How much is said on standard error."""

    QUIET = "quiet"
    """Errors alone; results are printed as ever."""
    NORMAL = "normal"
    VERBOSE = "verbose"
    """With what is logged for those who look for an error, and tracebacks."""


def verbosity() -> Verbosity:
    """How much this process says."""
    given = os.environ.get(VARIABLE, Verbosity.NORMAL)
    return Verbosity(given) if given in list(Verbosity) else Verbosity.NORMAL


def set_verbosity(level: Verbosity) -> None:
    """Choose it for this process and those that it starts."""
    os.environ[VARIABLE] = level
    if level == Verbosity.VERBOSE:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
        logging.getLogger("hvkf").setLevel(logging.DEBUG)
