"""How long a process takes to begin: `hvkf --help`, and each stage until its first item.

A stage's start is held against a bare process that imports the libraries and loads the models which
the stage needs, and nothing of hvkf; both by their CPU's time.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.data_path.measuring import (
    Row,
    Scale,
    child,
    run_stages,
    settings,
    store_plan,
    write_shapes,
)
from benchmarks.timing import took
from hvkf.demo import NETWORK

HELP_GOAL_S, GOAL = 0.5, 1.2
EARLIER = {
    "cache": ["ingest"],
    "encode": ["ingest", "cache"],
    "train": ["ingest", "cache", "encode"],
}


def measure(scale: Scale) -> list[Row]:
    """Time starts in turns."""
    command = [sys.executable, "-m", "hvkf.cli", "--help"]
    helps = [
        took(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        for _ in range(scale.repeats)
    ]
    rows = [
        Row(
            "start",
            "hvkf --help, seconds",
            f"<= {HELP_GOAL_S} s",
            HELP_GOAL_S,
            round(statistics.median(took.clock_s for took in helps), 3),
            round(statistics.median(took.cpu_s for took in helps), 3),
        )
    ]
    for stage, earlier in EARLIER.items():
        rows.append(start_of(stage, earlier, scale.repeats))
    return rows


def start_of(stage: str, earlier: list[str], repeats: int) -> Row:
    """Time a stage's start against its libraries'."""
    with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
        folder = Path(name)
        write_shapes(folder, 1, 17)
        config = settings(
            folder,
            cache={"bucket_reso": ["32x32x17"]},
            validation={"num_items": 0},
            network=NETWORK,
            hparams={"mixed_precision": "no"},
        )
        store = run_stages(config, *earlier)
        plan = store_plan(stage, config, store)
        pairs = [
            (child("probe", "begin", stage, config.workspace, plan), child("probe", "bare", stage))
            for _ in range(repeats)
        ]
    ratio = round(statistics.median(own["cpu_s"] / bare["cpu_s"] for own, bare in pairs), 3)
    details = {
        "cpu_s": [round(own["cpu_s"], 2) for own, _ in pairs],
        "limit_cpu_s": [round(bare["cpu_s"], 2) for _, bare in pairs],
    }
    return Row(
        "start", f"{stage} to its first item", f"<= {GOAL}", GOAL, None, ratio, details=details
    )
