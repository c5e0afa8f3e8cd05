"""The rendered manifests of a workspace, newest first: how far, what failed, at what cost."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, NamedTuple

from hvkf.listed import (
    UNKNOWN,
    AtWork,
    Listing,
    Reading,
    in_columns,
    is_of_kind,
    shown_hours,
    shown_time,
    time_of,
)
from hvkf.records import Record
from hvkf.stages.render_cost import Quote
from hvkf.stages.render_records import (
    LEDGER,
    ManifestRecord,
    RenderRecord,
    manifest_folder,
    record_path,
)
from hvkf.stages.render_work import SET_ASIDE
from hvkf.storage import Store
from hvkf.stored import open_parquet
from hvkf.stored_kinds import kind_of

State = Literal["waiting", "running", "stopped", "failed", "done"]
TITLE = ("RENDER", "STATE", "VIDEOS", "FAILED", "SET ASIDE", "DEVICE-HOURS", "PLANNED (UTC)")
NUM_READERS = 32


class Render(Record):
    """A manifest that is rendered, by the name that `hvkf fetch` takes.

    `state`: *waiting* is planned and has no row done, *running* a worker at work, *stopped* neither
    (the same command goes on), *failed* more failed rows than render.max_failed_fraction allows,
    *done* all its results. Of its rows, `num_failed` have no video; `num_set_aside` of these failed
    at each of their tries. `device_hours` is what its videos took, also those of other manifests;
    while it is not done, what `hvkf submit` quoted, and `is_quoted` says so. Times are in UTC.
    """

    name: str
    state: State
    num_rows: int
    num_rendered: int
    num_failed: int
    num_set_aside: int
    num_marked: int = 0
    device_hours: float | None = None
    is_quoted: bool = False
    planned_at: str | None = None
    ended_at: str | None = None
    gallery: str | None = None

    def cells(self) -> tuple[str, ...]:
        """Write its row of the table."""
        return (
            self.name,
            self.state,
            f"{self.num_rendered}/{self.num_rows}",
            str(self.num_failed) if self.num_failed else UNKNOWN,
            str(self.num_set_aside) if self.num_set_aside else UNKNOWN,
            shown_hours(self.device_hours) + (" quoted" if self.is_quoted else ""),
            shown_time(self.planned_at),
        )


class RenderList(Listing):
    """Renders, newest first, and how many older there are; what is foreign, and what is damaged."""

    renders: tuple[Render, ...]

    def lines(self) -> list[str]:
        """Write the table."""
        if not self.renders:
            return [f"no renders in {self.workspace}: `hvkf submit` begins one"]
        return in_columns(TITLE, [render.cells() for render in self.renders])


class _Rows(NamedTuple):
    """What became of rows, and what those that were rendered took."""

    num_rows: int = 0
    num_rendered: int = 0
    num_failed: int = 0
    num_set_aside: int = 0
    is_begun: bool = False
    device_hours: float | None = None


def list_renders(
    store: Store, limit: int | None = None, clock: Callable[[], float] = time.time
) -> RenderList:
    """List rendered manifests, newest first; nothing is written, and what is damaged ends nothing.

    Args:
        store: The workspace.
        limit: How many at most; None for all.
        clock: Seconds since 1970.
    """
    reading = Reading(store)
    paths = list(store.list("manifests"))
    planned = {path.split("/")[1]: path for path in paths if is_of_kind(path, "planned rows")}
    times = {name: _modified_s(store, path) for name, path in planned.items()}
    names = sorted(planned, key=lambda name: (-times[name], name))
    at_work = AtWork(reading, clock())
    done = _Done(store)
    renders = (
        _render(reading, name, planned[name], times[name], at_work, done) for name in names[:limit]
    )
    found = tuple(render for render in renders if render is not None)
    return RenderList(
        workspace=store.url,
        renders=found,
        num_older=len(names) - len(names[:limit]),
        foreign=tuple(path for path in paths if kind_of(path) is None),
        damaged=tuple(reading.damaged),
    )


def _modified_s(store: Store, path: str) -> float:
    with suppress(FileNotFoundError):  # deleted since it was listed
        return store.stat(path).modified_s
    return 0.0


class _Done:
    """The rows of the workspace that have a record; listed once, when first asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._paths: set[str] | None = None

    def __contains__(self, identity: str) -> bool:
        if self._paths is None:
            self._paths = set(self._store.list(LEDGER))
        return record_path(identity) in self._paths


def _render(
    reading: Reading, name: str, rows_path: str, planned_s: float, at_work: AtWork, done: _Done
) -> Render | None:
    root = manifest_folder(name)
    record = reading.record(f"{root}/record.json", ManifestRecord)
    results = f"{root}/results.parquet"
    has_results = reading.store.exists(results)
    rows = reading.told(
        lambda: (
            _finished_rows(reading.store, results)
            if has_results
            else _open_rows(reading, rows_path, done)
        )
    )
    if rows is None:  # its table is damaged: what its record says is left
        rows = _Rows(record.num_rows, record.num_rows - record.num_failed) if record else _Rows()
    quote = None if has_results else reading.record(f"{root}/quote.json", Quote)
    quoted = None if quote is None else _hours([group.seconds for group in quote.groups])
    return Render(
        name=name,
        state=_state(record is not None, has_results, rows, name, at_work),
        num_rows=rows.num_rows,
        num_rendered=rows.num_rendered,
        num_failed=rows.num_failed,
        num_set_aside=rows.num_set_aside,
        num_marked=record.num_marked if record else 0,
        device_hours=rows.device_hours if has_results else quoted,
        is_quoted=not has_results and quoted is not None,
        planned_at=time_of(planned_s),
        ended_at=time_of(_modified_s(reading.store, f"{root}/record.json")) if record else None,
        gallery=record.gallery if record else None,
    )


def _state(is_done: bool, has_results: bool, rows: _Rows, name: str, at_work: AtWork) -> State:
    if is_done:
        return "done"
    if name in at_work.running:
        return "running"
    if has_results:  # it was summed up, and refused
        return "failed"
    return "stopped" if rows.is_begun or ("render", name) not in at_work.open else "waiting"


def _finished_rows(store: Store, results: str) -> _Rows:
    """Count the rows of a table of results."""
    with open_parquet(store, results) as table:
        rows = table.read(["state", "code", "seconds"], use_threads=False).to_pylist()
    rendered = [row for row in rows if row["state"] == "rendered"]
    return _Rows(
        num_rows=len(rows),
        num_rendered=len(rendered),
        num_failed=len(rows) - len(rendered),
        num_set_aside=sum(row["code"] == SET_ASIDE for row in rows),
        device_hours=_hours([row["seconds"] for row in rendered]),
    )


def _open_rows(reading: Reading, rows_path: str, done: _Done) -> _Rows:
    """Count the rows of a manifest that is not summed up, by their records."""
    with open_parquet(reading.store, rows_path) as table:
        rows = table.read(["identity", "state"], use_threads=False).to_pylist()
    planned = [row["identity"] for row in rows if row["state"] != "failed"]
    recorded = [identity for identity in planned if identity in done]
    codes = list(_failed(reading, recorded))
    num_unusable = len(rows) - len(planned)
    return _Rows(
        num_rows=len(rows),
        num_rendered=len(recorded) - len(codes),
        num_failed=num_unusable + len(codes),
        num_set_aside=codes.count(SET_ASIDE),
        is_begun=bool(recorded),
    )


def _failed(reading: Reading, identities: list[str]) -> Iterator[str]:
    """Yield why rows failed that have a record; many are read at once, for S3 answers slowly."""
    with ThreadPoolExecutor(NUM_READERS) as readers:
        records = readers.map(
            lambda identity: reading.record(record_path(identity), RenderRecord), identities
        )
        for record in records:
            if record is not None and record.failure is not None:
                yield record.failure.code


def _hours(seconds: list[float | None]) -> float | None:
    """Sum up what is known; None where nothing is."""
    known = [one for one in seconds if one is not None]
    return sum(known) / 3600 if known else None
