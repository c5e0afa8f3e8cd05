"""Two processes against one."""

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
    KEPT,
    Row,
    Scale,
    fresh_copy,
    run_stages,
    settings,
    write_real_clips,
    write_shapes,
)
from benchmarks.timing import Took, took
from hvkf.config import Config

GOAL = 1.7
BUSY = "import time; e = time.process_time() + 3\nwhile time.process_time() < e: pass"


def measure(scale: Scale) -> list[Row]:
    """Measure caching and encoding."""
    return [processes(stage, scale) for stage in ("cache", "encode")]


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
            for _ in range(scale.repeats)
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
    return Row("scale", what, f">= {GOAL}", GOAL, ratio, is_least=True, details=details)


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
