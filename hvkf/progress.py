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
    """Counts units of work done, and failures; `advance` is cheap enough to call for each."""

    def __init__(self, total: int, show: Callable[["Progress", str], None]) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self._show = show
        self._shown_at_s = 0.0

    def advance(self, count: int = 1, note: str = "", failed: int = 0) -> None:
        """Count `count` more units, and `failed` items that could not be made.

        `note` is shown beside the bar.
        """
        self.done += count
        self.failed += failed
        now_s = time.monotonic()
        if self.done >= self.total or now_s - self._shown_at_s >= MIN_INTERVAL_S:
            self._shown_at_s = now_s
            self._show(self, note)


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
        note = _with_failures(event["note"], event["failed"])
        self._shown.update(task, total=event["total"], completed=event["done"], note=note)


def _with_failures(note: str, failed: int) -> str:
    return f"[red]{failed} failed[/red] {note}" if failed else note


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """Show how `total` units of work proceed: as lines if this process was started for that."""
    if os.environ.get(PROGRESS_VARIABLE) == "lines":
        yield Progress(total, lambda counted, note: _print_line(label, counted, note))
        return
    with display() as shown:
        task = shown.add_task(label, total=total, note="")

        def show(counted: Progress, note: str) -> None:
            shown.update(task, completed=counted.done, note=_with_failures(note, counted.failed))

        yield Progress(total, show)


def _print_line(label: str, counted: Progress, note: str) -> None:
    event = {
        "label": label,
        "done": counted.done,
        "total": counted.total,
        "failed": counted.failed,
        "note": note,
    }
    print(LINE_PREFIX + json.dumps(event), flush=True)


def parse_line(line: str) -> dict[str, object] | None:
    """Read a line that `progress` printed; None where it is any other output."""
    if not line.startswith(LINE_PREFIX):
        return None
    try:
        event = json.loads(line[len(LINE_PREFIX) :])
    except ValueError:  # its writer was killed amid the line
        return None
    return event if isinstance(event, dict) else None
