"""What the lists of runs and of renders share: who is at work, what does not read, and columns."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from hvkf.errors import CorruptData
from hvkf.records import Record
from hvkf.storage import Store
from hvkf.stored import read_record
from hvkf.stored_kinds import kind_of
from hvkf.uses import PLANS, WORK, PlanUse, WorkUse

RecordT = TypeVar("RecordT", bound=Record)
ReadT = TypeVar("ReadT")
UNKNOWN = "-"
GAP = "  "


class Listing(Record):
    """What a list has beside its entries: the number of older ones, what is foreign or damaged."""

    workspace: str
    num_older: int = 0
    foreign: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


class Reading:
    """Reads records for a list: what is damaged is a sentence beside it, and not its end."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.damaged: list[str] = []

    def record(self, path: str, kind: type[RecordT]) -> RecordT | None:
        """Read a record; None where there is none, or it is damaged."""
        return self.told(lambda: read_record(self.store, path, kind))

    def told(self, read: Callable[[], ReadT]) -> ReadT | None:
        """Read what may be gone or damaged."""
        try:
            return read()
        except FileNotFoundError:
            return None
        except CorruptData as fault:
            self.damaged.append(str(fault))
            return None

    def records(self, paths: Iterable[str], kind: type[RecordT]) -> list[RecordT]:
        """Read those records that read."""
        found = (self.record(path, kind) for path in paths)
        return [record for record in found if record is not None]

    def of_kind(self, folder: str, kind: type[RecordT], name: str) -> list[RecordT]:
        """Read the records of a kind below a folder; files of other kinds are left alone."""
        paths = (path for path in self.store.list(folder) if is_of_kind(path, name))
        return self.records(paths, kind)


class AtWork:
    """Which plans somebody works off now, and which are stored and not committed."""

    def __init__(self, reading: Reading, now_s: float) -> None:
        uses = reading.of_kind(WORK, WorkUse, "leases")
        self.running = {use.plan for use in uses if use.plan and use.is_live(now_s)}
        plans = reading.of_kind(PLANS, PlanUse, "open plans")
        self.open = {(plan.stage, plan.digest) for plan in plans if now_s < plan.until_s}


def is_of_kind(path: str, name: str) -> bool:
    """Whether an object of that kind belongs at a path; see `hvkf.stored_kinds`."""
    kind = kind_of(path)
    return kind is not None and kind.name == name


def time_of(seconds: float | None) -> str | None:
    """Write seconds since 1970 as a time of day in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def shown_time(written: str | None) -> str:
    """Write what `time_of` wrote for a table."""
    return written[:16].replace("T", " ") if written else UNKNOWN


def shown_hours(hours: float | None) -> str:
    """Write device-hours for a table."""
    return UNKNOWN if hours is None else f"{hours:.2f}"


def in_columns(title: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows under each other; lines are as long as they are, so that names can be copied."""
    table = [title, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(title))]
    return [
        GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
