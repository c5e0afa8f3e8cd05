"""What was seen of a job's workers, as the figures that a person watches."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hvkf.shown import counted

MAX_ROWS = 200


class Sighting(NamedTuple):
    """How far a worker was when it was first and last heard; times in seconds."""

    first_done: int
    first_s: float
    done: int
    total: int
    failed: int
    note: str
    unit: str


class Sightings:
    """Workers by number, and which parts of the job are done."""

    def __init__(self, parts: Sequence[int]) -> None:
        self._parts = list(parts)
        self._pending = set(parts)
        self._workers: dict[int, Sighting] = {}

    def see(self, worker: int, event: dict[str, Any], now_s: float) -> None:
        """Note a progress line of a worker; one that starts again counts from there."""
        done = int(event["done"])
        before = self._workers.get(worker)
        is_new = before is None or done < before.done
        first_done, first_s = (done, now_s) if is_new else before[:2]  # type: ignore[index]
        total, failed = int(event["total"]), int(event["failed"])
        note = str(event.get("note", ""))
        unit = str(event.get("unit", "items"))
        self._workers[worker] = Sighting(first_done, first_s, done, total, failed, note, unit)

    def see_pending(self, parts: Iterable[int]) -> None:
        """Note the parts whose records are not there yet."""
        self._pending = set(parts)

    def summary(self, now_s: float) -> tuple[float, str]:
        """Give percent and a sentence: items, rate, time left, failures."""
        workers = list(self._workers.values())
        done, total = sum(w.done for w in workers), sum(w.total for w in workers)
        if not total:
            return 0.0, "waiting for the first sign of the workers"
        # Workers run side by side: their rates add up.
        rates = [
            (w.done - w.first_done) / (now_s - w.first_s) for w in workers if now_s > w.first_s
        ]
        rate = sum(rates)
        words = [f"{done} of {total} {workers[0].unit}"]
        if rate > 0:
            words += [f"{rate:.3g} per second", f"{_duration((total - done) / rate)} left"]
        words.append(f"{sum(w.failed for w in workers)} failed")
        num_done = len(self._parts) - len(self._pending)
        words.append(f"{num_done} of {counted(len(self._parts), 'part')} done")
        return 100.0 * done / total, ", ".join(words)

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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
