"""Prefect's worker of a process pool, ending with the process that started it."""

import runpy
import sys

from hvkf.processes import follow_parent

if __name__ == "__main__":
    follow_parent()
    sys.argv = ["prefect", "worker", "start", "--pool", sys.argv[1], "--type", "process"]
    runpy.run_module("prefect", run_name="__main__")
