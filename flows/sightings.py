"""What was seen of a job's workers, as the figures that a person watches."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hvkf.shown import counted
from hvkf.time_left import TimeLeft

MAX_ROWS = 200


class Sighting(NamedTuple):
    """How far a worker was when it was last heard."""

    done: int
    total: int
    failed: int
    note: str
    unit: str


class Sightings:
    """Workers by number, and which parts of the job are done.

    Args:
        parts: Numbers of the job's parts.
        pending: Those whose records are not there yet; left out, all.
    """

    def __init__(self, parts: Sequence[int], pending: Iterable[int] | None = None) -> None:
        self._parts = list(parts)
        self._pending = set(parts if pending is None else pending)
        self._workers: dict[int, Sighting] = {}
        self._time_left = TimeLeft(len(self._pending))

    def see(self, worker: int, event: dict[str, Any], now_s: float) -> None:
        """Note a progress line of a worker."""
        self._time_left.see(worker, event, now_s)
        done, total, failed = int(event["done"]), int(event["total"]), int(event["failed"])
        note = str(event.get("note", ""))
        self._workers[worker] = Sighting(done, total, failed, note, str(event.get("unit", "items")))

    def see_pending(self, parts: Iterable[int]) -> None:
        """Note the parts whose records are not there yet."""
        self._pending = set(parts)

    def summary(self, now_s: float) -> tuple[float, str]:
        """Give percent and a sentence: items, rate, time left, failures."""
        workers = list(self._workers.values())
        done, total = self._time_left.units()
        if not total:
            return 0.0, "waiting for the first sign of the workers"
        words = [f"{done} of {total} {workers[0].unit}"]
        rate = self._time_left.rate(now_s)
        if rate > 0:
            words.append(f"{rate:.3g} per second")
        if self._pending and (left := self._time_left.told(now_s)):
            words.append(f"{left} left before the commit")
        words.append(f"{sum(w.failed for w in workers)} failed")
        num_done = len(self._parts) - len(self._pending)
        words.append(f"{num_done} of {counted(len(self._parts), 'part')} done")
        return 100.0 * min(1.0, done / total) if self._pending else 100.0, ", ".join(words)

    def rows(self) -> list[dict[str, Any]]:
        """Make the table: the workers, then the parts that are not done, then the others."""
        rows: list[dict[str, Any]] = [
            {
                "what": f"worker {number}",
                "state": "done" if seen.done >= seen.total else "running",
                "items": f"{seen.done} of {seen.total}",
                "failed": seen.failed,
                "at": seen.note,
            }
            for number, seen in sorted(self._workers.items())
        ]
        parts = sorted(self._parts, key=lambda part: (part not in self._pending, part))
        for part in parts[:MAX_ROWS]:
            state = "to do" if part in self._pending else "done"
            rows.append(
                {"what": f"part {part}", "state": state, "items": "", "failed": "", "at": ""}
            )
        if len(parts) > MAX_ROWS:
            more = {"what": f"and {counted(len(parts) - MAX_ROWS, 'more part')}", "state": ""}
            rows.append({**more, "items": "", "failed": "", "at": ""})
        return rows
