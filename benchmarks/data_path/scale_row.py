"""The time per clip as clips become more, and two processes against one."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.data_path.cache_row import BUCKETS
from benchmarks.data_path.measuring import (
    Row,
    Scale,
    child,
    fresh_copy,
    run_stages,
    settings,
    store_plan,
    write_real_clips,
    write_shapes,
)
from benchmarks.timing import Took, took
from hvkf.config import Config

FLAT_GOAL, PROCESSES_GOAL = 1.1, 1.7
MOST_REPEATS = 3
KEPT = {"cache": ("datasets",), "encode": ("datasets", "scenes")}
BUSY = "import time; e = time.process_time() + 3\nwhile time.process_time() < e: pass"


def measure(scale: Scale) -> list[Row]:
    """Measure growth by the CPU and processes by the clock."""
    counts = {"cache": (1, 10, 100, 1000), "encode": (1, 10, 100)}
    if scale.is_quick:
        counts = {"cache": (1, 10, 50), "encode": (1, 5)}
    rows = [growth(stage, of_stage) for stage, of_stage in counts.items()]
    rows += [processes(stage, scale) for stage in ("cache", "encode")]
    return rows


def growth(stage: str, counts: tuple[int, ...]) -> Row:
    """Compare the CPU's time per clip, without the start, at more clips with that at fewer."""
    earlier = ["ingest"] if stage == "cache" else ["ingest", "cache"]
    per_clip: dict[int, float] = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
            folder = Path(name)
            write_shapes(folder, count, 17)
            config = settings(folder, cache={"bucket_reso": ["32x32x17"]})
            store = run_stages(config, *earlier)
            plan = store_plan(stage, config, store)
            found = child("probe", "whole", stage, config.workspace, plan)
            per_clip[count] = (found["cpu_s"] - found["begun_cpu_s"]) / count
    worst = max(
        per_clip[more] / per_clip[fewer] for fewer in counts for more in counts if more > fewer
    )
    what = f"{stage}: growth of time per clip, {' to '.join(map(str, counts))} clips"
    details = {"ms_per_clip": {count: round(1000 * s, 1) for count, s in per_clip.items()}}
    return Row("scale", what, f"<= {FLAT_GOAL}", FLAT_GOAL, None, round(worst, 3), details=details)


def processes(stage: str, scale: Scale) -> Row:
    """Time a stage in one worker process and in two, from command to commit, a core for each.

    A process has threads that read, commit, and (of caching) decode: left to itself it takes more
    than one core, and two cannot be twice as fast on two. That ratio is among the details.
    """
    cores = sorted(os.sched_getaffinity(0))
    one, two = set(cores[:1]), set(cores[:2])
    with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
        config = work_for_two(Path(name), stage, scale)
        configs = [with_workers(config, stage, workers) for workers in (1, 2)]
        pairs = [
            (on_cores(one, configs[0], stage), on_cores(two, configs[1], stage))
            for _ in range(min(scale.repeats, MOST_REPEATS))
        ]
        free = [on_cores(two, config, stage).clock_s for config in configs]
    ratio = round(statistics.median(first.clock_s / second.clock_s for first, second in pairs), 3)
    details = {
        "one_s": [round(first.clock_s, 1) for first, _ in pairs],
        "two_s": [round(second.clock_s, 1) for _, second in pairs],
        "on_any_core": round(free[0] / free[1], 3),
        "two_busy_loops": two_busy_loops(),
    }
    what = f"{stage}: 2 processes on 2 cores against 1 on 1, wall"
    goal = f">= {PROCESSES_GOAL}"
    return Row("scale", what, goal, PROCESSES_GOAL, ratio, is_least=True, details=details)


def on_cores(cores: Set[int], config: Config, stage: str) -> Took:
    """Time a stage that begins from what earlier stages made, with its processes on some cores."""
    folder = Path(config.workspace).parent
    with held_to(cores), fresh_copy(folder, *KEPT[stage]) as store:
        there = config.model_copy(update={"workspace": str(store.root)})
        return took(partial(run_stages, there, stage))


@contextmanager
def held_to(cores: Set[int]) -> Iterator[None]:
    """Keep this process, and those that it starts, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def work_for_two(folder: Path, stage: str, scale: Scale) -> Config:
    """Prepare a stage's input, many times what a process takes to start, in parts for two."""
    if stage == "cache":
        write_real_clips(folder, 2 if scale.is_quick else 24)
        cache = {"bucket_reso": BUCKETS, "segments_per_part": 3, "segment_mb": 64}
        config = settings(folder, cache=cache)
        run_stages(config, "ingest")
    else:
        write_shapes(folder, 4 if scale.is_quick else 96, 97)
        cache = {"bucket_reso": ["64x64x97"], "segment_mb": 5}
        config = settings(folder, cache=cache, encode={"segments_per_part": 2})
        run_stages(config, "ingest", "cache")
    return config


def with_workers(config: Config, stage: str, workers: int) -> Config:
    """Give a stage so many worker processes of one thread."""
    jobs = {**config.jobs.model_dump(), stage: {"workers": workers, "threads": 1}}
    return Config.model_validate({**config.model_dump(), "jobs": jobs})


def two_busy_loops() -> float:
    """Say how much more this machine computes in two processes than in one, at this moment."""
    command = [sys.executable, "-c", BUSY]
    one = took(lambda: subprocess.run(command, check=True))

    def run_two() -> None:
        running = [subprocess.Popen(command) for _ in range(2)]
        for process in running:
            process.wait()

    return round(2 * one.clock_s / took(run_two).clock_s, 2)
