"""How much memory a worker takes at its peak, and whether that grows with the number of clips.

What the interpreter, the libraries and the models take is left out where it is named: a worker's
peak at its end less that at its first item.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data_path.cache_row import BUCKETS
from benchmarks.data_path.measuring import (
    Row,
    Scale,
    child,
    run_stages,
    settings,
    store_plan,
    write_real_clips,
    write_shapes,
)

GOAL, FLAT_GOAL = 2.0, 1.1
LARGEST_MB = 49 * 1280 * 720 * 3 / 2**20
"""The frames that are needed of the largest real clip, decoded."""


def measure(scale: Scale) -> list[Row]:
    """Measure peaks of whole runs of a worker."""
    with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
        folder = Path(name)
        write_real_clips(folder)
        found = run_whole(folder, "cache", BUCKETS, "ingest")
    above_mb = found["peak_mb"] - found["begun_mb"]
    details = {**found, "limit_mb": LARGEST_MB}
    rows = [
        Row(
            "memory",
            "cache: peak / largest clip's frames",
            f"<= {GOAL}",
            GOAL,
            round(above_mb / LARGEST_MB, 3),
            details=details,
        )
    ]
    few, many = (2, 8) if scale.is_quick else (10, 100)
    for stage, earlier in (("cache", ["ingest"]), ("encode", ["ingest", "cache"])):
        peaks = {}
        for count in (1, few, many):
            with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
                write_shapes(Path(name), count, 17)
                peaks[count] = run_whole(Path(name), stage, ["32x32x17"], *earlier)["peak_mb"]
        if stage == "encode":
            over_one = round(peaks[many] / peaks[1], 3)
            what = "encode: peak / models and one batch"
            rows.append(Row("memory", what, f"<= {GOAL}", GOAL, over_one, details={"mb": peaks}))
        flat = round(peaks[many] / peaks[few], 3)
        what = f"{stage}: peak of {many} clips / of {few}"
        rows.append(Row("memory", what, f"<= {FLAT_GOAL}", FLAT_GOAL, flat, details={"mb": peaks}))
    return rows


def run_whole(folder: Path, stage: str, buckets: list[str], *earlier: str) -> dict[str, Any]:
    """Run a stage in one child process, all its parts, and return what it took."""
    config = settings(folder, cache={"bucket_reso": buckets})
    store = run_stages(config, *earlier)
    plan = store_plan(stage, config, store)
    return child("probe", "whole", stage, config.workspace, plan)
