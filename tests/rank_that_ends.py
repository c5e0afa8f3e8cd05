"""A rank for tests of `hvkf.distributed`: it ends as it is told, without torch.

`python -m tests.rank_that_ends FOLDER END...`: rank `i` writes its process id into FOLDER and then
does the `i`-th END: `ok`, an exit code of `hvkf.errors`, `killed`, `waits` for SIGTERM.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from hvkf.distributed import exit_code_recorded, rank
from hvkf.errors import BadInput, Stopped, TryAgain
from hvkf.processes import follow_parent

WAIT_S = 60
FAULTS = {"65": BadInput, "75": TryAgain}


def told(signum: int, frame: FrameType | None) -> None:
    """Take SIGTERM as training does."""
    raise Stopped("told to stop")


def main() -> None:
    """End as told."""
    folder, *ends = sys.argv[1:]
    follow_parent()
    signal.signal(signal.SIGTERM, told)
    end = ends[rank()]
    with exit_code_recorded():
        (Path(folder) / f"started-{rank()}").write_text(str(os.getpid()))
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "waits":
            time.sleep(WAIT_S)
        if end in FAULTS:
            raise FAULTS[end](f"rank {rank()} ends with {end}")


if __name__ == "__main__":
    try:
        main()
    except (BadInput, TryAgain, Stopped) as fault:
        sys.exit(fault.exit_code)
