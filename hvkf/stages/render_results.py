"""What became of a manifest: the table of results and the gallery, written a few rows at a time."""

import io
import json
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hvkf.config import Config
from hvkf.errors import CorruptData, TryAgain
from hvkf.loras import Lora
from hvkf.records import Failure, Plan
from hvkf.stages.pages import render_page
from hvkf.stages.render_checks import marks_of
from hvkf.stages.render_claims import ClaimRecord, last_claim
from hvkf.stages.render_records import (
    VIDEO_NAME,
    ManifestRecord,
    RenderRecord,
    RenderTask,
    ResultRow,
    manifest_folder,
    picture_name,
    record_path,
    render_folder,
)
from hvkf.stages.render_rows_file import PlannedRow, read_all_rows
from hvkf.stages.render_tasks import retry_of
from hvkf.storage import Store
from hvkf.stored import put_file, read_record, stored_file

logger = logging.getLogger(__name__)
NUM_READERS = 32
ROWS_AT_ONCE = 2048
ARROW_TYPES: dict[Any, Any] = {
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
}
# What the gallery shows; its page reads the rows by these names.
GALLERY_COLUMNS = (
    *("row", "id", "state", "code", "message", "notes", "marks", "identity", "prompt", "tags"),
    *("lora", "width", "height", "num_frames", "steps", "guidance", "seed"),
    *("first_frame_psnr_db", "last_frame_psnr_db", "keyframe_psnr_db", "end_jump"),
    *("colour_drift", "freeze", "pictures"),
)


class _Outcome(NamedTuple):
    """The try of a row that counts, its record, and the identities of all tries."""

    task: RenderTask
    record: RenderRecord
    marks: list[str]
    tries: list[str]
    begun_s: float | None
    seconds: float | None


def write_results(plan: Plan, config: Config, store: Store) -> tuple[ManifestRecord, list[Failure]]:
    """Write a manifest's table and gallery, and say which rows failed.

    Raises:
        TryAgain: a row has no record, since someone has it tried again.
    """
    root = manifest_folder(plan.digest)
    rows_file = next(path for path in store.list(root) if path.startswith(f"{root}/rows-"))
    outcomes = _Outcomes(plan, config, store)
    results, gallery = _Table(), _GalleryData()
    failures: list[Failure] = []
    num_rows = num_marked = 0
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for rows in _in_chunks(read_all_rows(store, rows_file)):
            found = outcomes.of(rows, readers)
            num_rows += len(found)
            num_marked += sum(bool(row.marks) for row in found)
            failures += [
                Failure(code=row.code, message=row.message, source=f"row {row.row} ({row.id})")
                for row in found
                if row.state == "failed"
            ]
            results.add(found)
            gallery.add(found)
    page = render_page(
        "gallery.html.j2", num_rows=num_rows, num_failed=len(failures), renders="../../renders"
    )
    record = ManifestRecord(
        num_rows=num_rows,
        num_failed=len(failures),
        num_marked=num_marked,
        results=f"{root}/results.parquet",
        gallery=f"{root}/index.html",
        files=(
            stored_file(store, rows_file),
            put_file(store, f"{root}/results.parquet", results.file()),
            put_file(store, f"{root}/gallery.js", gallery.script()),
            put_file(store, f"{root}/index.html", page),
        ),
    )
    return record, failures


def _in_chunks(rows: Iterable[PlannedRow]) -> Iterator[list[PlannedRow]]:
    chunk: list[PlannedRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Outcomes:
    """Finds the records of planned rows."""

    def __init__(self, plan: Plan, config: Config, store: Store) -> None:
        self._render = config.render
        self._store = store
        self._loras = {
            name: Lora.model_validate(lora) for name, lora in plan.inputs["loras"].items()
        }
        self._models = str(plan.inputs["models"])

    def of(self, rows: list[PlannedRow], readers: Executor) -> list[ResultRow]:
        """Say of each row what became of it, in their order."""
        return list(readers.map(self._result, rows))

    def _result(self, planned: PlannedRow) -> ResultRow:
        if planned.failure is not None:
            return _failed_result(planned.task, planned.failure)
        outcome = self._outcome(planned.task)
        if outcome.record.failure is not None:
            return _failed_result(outcome.task, outcome.record.failure)
        return _rendered_result(outcome)

    def _outcome(self, task: RenderTask) -> _Outcome:
        """Read the first try that keeps to the bounds, or else the one with the best keyframes."""
        first = self._read(task)
        if first is None:
            raise TryAgain(
                f"{record_path(task.identity)} is gone: its row is tried again; run this again."
            )
        tried = [(task, first)]
        lora = self._loras[task.lora]
        for number in range(1, self._render.checks.retries + 1):
            if not self._marks(tried[-1][1]):
                break
            again = retry_of(task, number, self._render, lora, self._models)
            record = self._read(again)
            if record is None or record.failure is not None:
                break
            tried.append((again, record))
        chosen, record = tried[-1]
        if self._marks(record):
            chosen, record = max(tried, key=lambda pair: _keyframe_psnr(pair[1]))
        claim = _claim_for_times(self._store, chosen.identity)
        is_timed = claim is not None and claim.ended == "done" and claim.ended_s is not None
        return _Outcome(
            chosen,
            record,
            self._marks(record),
            [task.identity for task, _ in tried],
            claim.taken_s if claim and is_timed else None,
            claim.ended_s - claim.taken_s if claim and is_timed and claim.ended_s else None,
        )

    def _marks(self, record: RenderRecord) -> list[str]:
        return marks_of(record.checks, self._render.checks) if record.checks else []

    def _read(self, task: RenderTask) -> RenderRecord | None:
        try:
            return read_record(self._store, record_path(task.identity), RenderRecord)
        except FileNotFoundError:
            return None


def _claim_for_times(store: Store, identity: str) -> ClaimRecord | None:
    """Read how long a row took; None with a warning where its claim is damaged: it is a hint."""
    try:
        return last_claim(store, identity)[1]
    except CorruptData as fault:
        logger.warning("%s Its row has no time in the results.", fault)
        return None


def _keyframe_psnr(record: RenderRecord) -> float:
    return record.checks.keyframe_psnr_db if record.checks else 0.0


def _row_values(task: RenderTask) -> dict[str, object]:
    row = task.row.model_dump(exclude={"keyframes"})
    frames = [[frame.position, frame.path] for frame in task.keyframes]
    return {
        **row,
        "notes": task.notes,
        "keyframes": json.dumps(frames) if task.row.keyframes else "",
        "lora": task.lora,
    }


def _failed_result(task: RenderTask, failure: Failure) -> ResultRow:
    figures = (
        *("begun_s", "seconds", "first_frame_psnr_db", "last_frame_psnr_db"),
        *("keyframe_psnr_db", "end_jump", "colour_drift", "freeze"),
    )
    return ResultRow.model_validate(
        {
            **_row_values(task),
            **dict.fromkeys(figures),
            "state": "failed",
            "code": failure.code,
            "message": failure.message,
            "marks": "",
            "identity": task.identity,
            "tries": "",
            "video": "",
        }
    )


def _rendered_result(outcome: _Outcome) -> ResultRow:
    task, record = outcome.task, outcome.record
    assert record.checks is not None
    return ResultRow.model_validate(
        {
            **_row_values(task),
            **record.checks.model_dump(),
            "state": "rendered",
            "code": "",
            "message": "",
            "marks": " ".join(outcome.marks),
            "identity": task.identity,
            "tries": " ".join(outcome.tries),
            "video": f"{render_folder(task.identity)}/{VIDEO_NAME}",
            "begun_s": outcome.begun_s,
            "seconds": outcome.seconds,
            "first_frame_psnr_db": record.first_frame and record.first_frame.psnr_db,
            "last_frame_psnr_db": record.last_frame and record.last_frame.psnr_db,
        }
    )


class _Table:
    """The Parquet table of results, a row group for each chunk."""

    def __init__(self) -> None:
        fields = ResultRow.model_fields.items()
        self._schema = pa.schema(
            [(name, ARROW_TYPES.get(field.annotation, pa.string())) for name, field in fields]
        )
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")

    def add(self, rows: list[ResultRow]) -> None:
        batch = pa.RecordBatch.from_pylist([row.model_dump() for row in rows], schema=self._schema)
        self._writer.write_batch(batch)

    def file(self) -> bytes:
        self._writer.close()
        return self._sink.getvalue()


class _GalleryData:
    """The rows for the gallery's page, as a script: pages may not read files from file://."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, rows: list[ResultRow]) -> None:
        for row in rows:
            values = row.model_dump()
            values["pictures"] = _pictures(row)
            cells = [values[column] for column in GALLERY_COLUMNS]
            self._lines.append(json.dumps(cells, ensure_ascii=False, separators=(",", ":")))

    def script(self) -> bytes:
        rows = ",\n".join(self._lines)
        text = f"window.HVKF={{columns:{json.dumps(GALLERY_COLUMNS)},rows:[\n{rows}\n]}};\n"
        # Inside a script these letters could end it, or a line of it.
        for letter in "<\u2028\u2029":
            text = text.replace(letter, f"\\u{ord(letter):04x}")
        return text.encode()


def _pictures(row: ResultRow) -> list[str]:
    """Name the keyframes' pictures that lie beside the video."""
    ends = [0, row.num_frames - 1]
    positions = [place for place, _ in json.loads(row.keyframes)] if row.keyframes else ends
    return [picture_name(place, row.num_frames) for place in positions]
