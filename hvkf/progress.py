"""Progress of long work: bars for a person, lines for a file, JSON for the process that waits."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import rich.progress as bars
from rich.console import Console
from rich.markup import escape

from hvkf.time_left import TimeLeft
from hvkf.verbosity import Verbosity, verbosity

PROGRESS_VARIABLE = "HVKF_PROGRESS"
LINE_PREFIX = "@progress "
MIN_INTERVAL_S = 0.2
LINE_INTERVAL_S = 30.0


class Progress:
    """Counts units of work done, and failures; `advance` is cheap enough to call for each."""

    def __init__(self, total: int, show: Callable[["Progress", str], None]) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self.resumed = 0
        self.whole: int | None = None
        self._show = show
        self._shown_at_s = 0.0

    def resume(self, count: int) -> None:
        """Count what was done before this began."""
        self.resumed = count
        self.advance(count)

    def advance(self, count: int = 1, note: str = "", failed: int = 0, whole: int = 0) -> None:
        """Count `count` more units, and `failed` items that could not be made.

        `note` is shown beside the bar. Where a unit is a piece of an item, `whole` counts the items
        that are ready.
        """
        self.done += count
        self.failed += failed
        if whole:
            self.whole = (self.whole or 0) + whole
        now_s = time.monotonic()
        if self.done >= self.total or now_s - self._shown_at_s >= MIN_INTERVAL_S:
            self._shown_at_s = now_s
            self._show(self, note)


class Display(Protocol):
    """Where people see several tasks proceed, and what workers say."""

    def __enter__(self) -> "Display":
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """End; what was shown last stays."""

    def show(self, task: str, event: dict[str, Any]) -> None:
        """Show how far a task is: `event` has label, done, total, failed, note and maybe left."""

    def say(self, line: str) -> None:
        """Print a line as it is: never wrapped, cut or coloured."""


def display() -> Display:
    """Choose what fits standard error: bars in a terminal, a line now and then in a file."""
    if verbosity() == Verbosity.QUIET:
        return Silence()
    return Bars(Console(stderr=True)) if sys.stderr.isatty() else Lines()


class Bars:
    """A bar for each task, in a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = bars.Progress(
            bars.TextColumn("{task.description:<10}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[left]}"),
            bars.TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, bars.TaskID] = {}

    def __enter__(self) -> "Bars":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, task: str, event: dict[str, Any]) -> None:
        """See `Display`."""
        if task not in self._tasks:
            label = event["label"]
            self._tasks[task] = self._progress.add_task(label, total=None, note="", left="")
        note = escape(str(event["note"]))
        if event["failed"]:
            note = f"[red]{event['failed']} failed[/red] {note}"
        left = f"{event['left']} left" if event.get("left") else ""
        self._progress.update(
            self._tasks[task],
            total=event["total"],
            completed=event["done"],
            note=note,
            left=left,
        )

    def say(self, line: str) -> None:
        """See `Display`."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Lines:
    """For files and pipes: a line for each task as it begins and ends, and every half minute.

    The half minutes are counted in a thread, so that work which says nothing for long is told of.
    """

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._running: dict[str, dict[str, Any]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress lines", daemon=True)

    def __enter__(self) -> "Lines":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def show(self, task: str, event: dict[str, Any]) -> None:
        """See `Display`."""
        is_new = task not in self._running
        self._running[task] = event
        if is_new or event["done"] >= event["total"]:
            self._tell(event)

    def say(self, line: str) -> None:
        """See `Display`."""
        print(line, file=sys.stderr, flush=True)

    def _tell(self, event: dict[str, Any]) -> None:
        failed = f", {event['failed']} failed" if event["failed"] else ""
        note = f" ({event['note']})" if event["note"] else ""
        seconds = f"{time.monotonic() - self._begun_s:.0f} s"
        self.say(f"{event['label']}: {event['done']} of {event['total']}{failed}, {seconds}{note}")

    def _repeat(self) -> None:
        while not self._ended.wait(LINE_INTERVAL_S):
            for event in list(self._running.values()):
                if event["done"] < event["total"]:
                    self._tell(event)


class Silence:
    """Shows nothing: `--quiet`."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was begun."""

    def show(self, task: str, event: dict[str, Any]) -> None:
        """See `Display`."""

    def say(self, line: str) -> None:
        """See `Display`."""


class WorkerBars:
    """Each worker of a job as a task of a display, moved by the lines that the workers print."""

    def __init__(self, shown: Display, num_parts: int = 1) -> None:
        self._shown = shown
        self._time_left = TimeLeft(num_parts)

    def show(self, worker: int, event: dict[str, Any]) -> None:
        """Move a worker's task to what its line said; all say how long the whole job takes."""
        now_s = time.monotonic()
        self._time_left.see(worker, event, now_s)
        self._shown.show(str(worker), {**event, "left": self._time_left.told(now_s)})


@contextmanager
def progress(
    label: str, total: int, unit: str = "items", *, is_in_pieces: bool = False
) -> Iterator[Progress]:
    """Show how `total` units of work proceed: as lines if this process was started for that.

    Args:
        label: What is worked on.
        total: All units.
        unit: What they are called.
        is_in_pieces: Whether units are pieces of items: an item's last one says nothing of when it
            is ready, and `Progress.advance` is told that.
    """

    def event(counted: Progress, note: str) -> dict[str, Any]:
        return {**_event(label, counted, note), "unit": unit}

    with ExitStack() as until_end:
        if os.environ.get(PROGRESS_VARIABLE) == "lines":
            counted = Progress(total, lambda counted, note: _print_line(event(counted, note)))
        else:
            worker = WorkerBars(until_end.enter_context(display()))
            counted = Progress(total, lambda counted, note: worker.show(0, event(counted, note)))
        counted.whole = 0 if is_in_pieces else None
        yield counted


def _event(label: str, counted: Progress, note: str) -> dict[str, Any]:
    return {
        "label": label,
        "done": counted.done,
        "total": counted.total,
        "failed": counted.failed,
        "note": note,
        **({"resumed": counted.resumed} if counted.resumed else {}),
        **({} if counted.whole is None else {"whole": counted.whole}),
    }


def _print_line(event: dict[str, Any]) -> None:
    print(LINE_PREFIX + json.dumps(event), flush=True)


def parse_line(line: str) -> dict[str, object] | None:
    """Read a line that `progress` printed; None where it is any other output."""
    if not line.startswith(LINE_PREFIX):
        return None
    event = json.loads(line[len(LINE_PREFIX) :])
    return event if isinstance(event, dict) else None
