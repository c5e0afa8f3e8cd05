"""Traces of training steps by `torch.profiler`: where the time of a step goes."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from hvkf.settings.training import ProfilingConfig
from hvkf.storage import Store
from hvkf.training.runs import run_folder


def trace_path(run_id: str, first_step: int, last_step: int, rank: int) -> str:
    """Where a rank's trace lies."""
    steps = f"steps-{first_step:08d}-{last_step:08d}"
    return f"{run_folder(run_id)}/profile/{steps}-rank{rank}.json.gz"


class Profiler:
    """Traces the steps that the settings name, in one piece; none where they name none.

    A run that is stopped in between leaves no trace: the steps that follow are another process's.
    """

    def __init__(
        self, config: ProfilingConfig, store: Store, run_id: str, *, num_steps: int, rank: int
    ) -> None:
        self._config = config
        self._store = store
        self._first = config.first_step or 0
        self._last = min(self._first + config.num_steps - 1, num_steps)
        self._path = trace_path(run_id, self._first, self._last, rank)
        self._profile: Any = None

    def begin(self, step: int) -> None:
        """Begin to trace, if this step is the first of those."""
        if step != self._first:
            return
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(
            activities=kinds,
            record_shapes=self._config.record_shapes,
            with_stack=self._config.with_stack,
        )
        self._profile.start()

    def end(self, step: int) -> None:
        """Store the trace, if this step is the last of those."""
        if self._profile is None or step < self._last:
            return
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="hvkf-profile-") as folder:
            file = Path(folder) / "trace.json.gz"
            self._profile.export_chrome_trace(str(file))
            self._store.take(file, self._path)
        self._profile = None
