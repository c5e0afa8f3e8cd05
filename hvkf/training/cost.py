"""How long processes trained a run: a small record each, from which `hvkf runs` tells the cost."""

import time
import uuid
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from hvkf.records import FORMAT_VERSION, Record
from hvkf.storage import Store

TIMINGS = "timings/train"


class TrainTiming(Record):
    """How long a gang of ranks, each on a device of its own, has trained a run until a checkpoint.

    What a killed gang did after its last checkpoint is done anew, and does not count.
    """

    format_version: int = FORMAT_VERSION
    run_id: str
    num_ranks: Annotated[int, Field(ge=1)]
    step: int
    seconds: Annotated[float, Field(ge=0)]


class Stopwatch:
    """Times this process's part of a run, from when it is made; loading the model counts."""

    def __init__(self, run_id: str, num_ranks: int) -> None:
        self._run_id, self._num_ranks = run_id, num_ranks
        self._path = f"{timings_folder(run_id)}/{uuid.uuid4().hex}.json"
        self._begun_s = time.monotonic()

    def put(self, store: Store, step: int) -> None:
        """Record the time until the checkpoint of `step`, in place of what was recorded before."""
        timing = TrainTiming(
            run_id=self._run_id,
            num_ranks=self._num_ranks,
            step=step,
            seconds=time.monotonic() - self._begun_s,
        )
        store.put(self._path, timing.to_json())


def timings_folder(run_id: str) -> str:
    """Where the times of a run's processes lie."""
    return f"{TIMINGS}/{run_id}"


def device_hours(timings: Iterable[TrainTiming]) -> float | None:
    """Sum up what a run has taken of its devices; None where no time is recorded."""
    seconds = [timing.seconds * timing.num_ranks for timing in timings]
    return sum(seconds) / 3600 if seconds else None
