"""Progress of long work: a bar for a person, or JSON lines for the process that waits for it."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich.progress as bars
from rich.console import Console

PROGRESS_VARIABLE = "HVKF_PROGRESS"
LINE_PREFIX = "@progress "
MIN_INTERVAL_S = 0.2


class Progress:
    """Counts units of work done; `advance` is cheap enough to call for every one."""

    def __init__(self, total: int, show: Callable[[int, str], None]) -> None:
        self.total = total
        self.done = 0
        self._show = show
        self._shown_at_s = 0.0

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` is shown beside the bar."""
        self.done += count
        now_s = time.monotonic()
        if self.done >= self.total or now_s - self._shown_at_s >= MIN_INTERVAL_S:
            self._shown_at_s = now_s
            self._show(self.done, note)


def display() -> bars.Progress:
    """Make the terminal display that all progress bars of hvkf share."""
    return bars.Progress(
        bars.TextColumn("{task.description:<10}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


class WorkerBars:
    """A bar for each worker of a job, moved by the lines that the workers print."""

    def __init__(self, shown: bars.Progress) -> None:
        self._shown = shown
        self._tasks: dict[int, bars.TaskID] = {}

    def show(self, worker: int, event: dict[str, Any]) -> None:
        """Move a worker's bar to what its line said."""
        if worker not in self._tasks:
            self._tasks[worker] = self._shown.add_task(event["label"], total=None, note="")
        task = self._tasks[worker]
        self._shown.update(task, total=event["total"], completed=event["done"], note=event["note"])


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """Show how `total` units of work proceed: as lines if this process was started for that."""
    if os.environ.get(PROGRESS_VARIABLE) == "lines":
        yield Progress(total, lambda done, note: _print_line(label, done, total, note))
        return
    with display() as shown:
        task = shown.add_task(label, total=total, note="")
        yield Progress(total, lambda done, note: shown.update(task, completed=done, note=note))


def _print_line(label: str, done: int, total: int, note: str) -> None:
    event = {"label": label, "done": done, "total": total, "note": note}
    print(LINE_PREFIX + json.dumps(event), flush=True)


def parse_line(line: str) -> dict[str, object] | None:
    """Read a line that `progress` printed; None where it is any other output."""
    if not line.startswith(LINE_PREFIX):
        return None
    event = json.loads(line[len(LINE_PREFIX) :])
    return event if isinstance(event, dict) else None
