"""How long a job still takes, by all of its work; nothing where that is not known yet."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Before that, what was done says more of the start than of the pace.
MIN_ELAPSED_S = 30.0
MIN_UNITS = 10
MIN_SHARE = 0.1


class _Worker(NamedTuple):
    done: int
    total: int
    whole: int
    parts: int


class TimeLeft:
    """Counts the work of a job's workers, and the parts that none of them has begun.

    A worker tells of the parts that it was given: renders go in turns of few parts, and a cluster
    starts some pods when others have ended. What is not begun is taken to be as much as the rest.
    """

    def __init__(self, num_parts: int) -> None:
        self._num_parts = num_parts
        self._workers: dict[int, _Worker] = {}
        self._ended: list[_Worker] = []  # finished, and in their places others have begun
        self._begun_s: float | None = None
        self._advanced = 0
        self._num_whole = 0
        self._is_in_items = False

    def see(self, worker: int, event: Mapping[str, Any], now_s: float) -> None:
        """Note a progress line of a worker.

        Args:
            worker: Its number; another worker may get the same one later.
            event: `done` and `total`; `parts`, how many it was given (default: 1); `resumed`, what
                was done before it began; `whole`, where a unit is a piece of an item: how many
                items it has made wholly.
            now_s: The time.
        """
        self._is_in_items |= "whole" in event
        seen = _Worker(
            int(event["done"]),
            int(event["total"]),
            int(event.get("whole", 0)),
            int(event.get("parts", 1)),
        )
        before = self._workers.get(worker)
        if before is not None and seen.done < before.done:
            if before.done >= before.total:
                self._ended.append(before)
            before = None
        if self._begun_s is None:  # how long it had worked before this is not known
            self._begun_s, before = now_s, seen
        known = before or _Worker(int(event.get("resumed", 0)), 0, 0, 0)
        self._advanced += seen.done - known.done
        self._num_whole += seen.whole - known.whole
        self._workers[worker] = seen

    def units(self) -> tuple[int, int]:
        """Count the units that are done, and all: those of parts not begun by those of the rest."""
        workers = [*self._ended, *self._workers.values()]
        done, total = sum(one.done for one in workers), sum(one.total for one in workers)
        parts = sum(one.parts for one in workers)
        not_begun = max(0, self._num_parts - parts)
        return done, total + (round(not_begun * total / parts) if parts else 0)

    def rate(self, now_s: float) -> float:
        """Give the units per second since the first sign of a worker, pauses included."""
        elapsed_s = 0.0 if self._begun_s is None else now_s - self._begun_s
        return self._advanced / elapsed_s if elapsed_s > 0 else 0.0

    def told(self, now_s: float) -> str:
        """Say how long it still takes; empty where too little is known, or all is done."""
        done, total = self.units()
        left, advanced = total - done, self._advanced
        if self._begun_s is None or left <= 0 or now_s - self._begun_s < MIN_ELAPSED_S:
            return ""
        if self._is_in_items and not self._num_whole:
            return ""  # what comes behind an item's last piece may take the most of its time
        if advanced <= 0 or (advanced < MIN_UNITS and advanced < MIN_SHARE * (advanced + left)):
            return ""
        return duration(left / self.rate(now_s))


def duration(seconds: float) -> str:
    """Write a time as precisely as an estimate is."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute"
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes} min" if hours else f"about {minutes} min"
