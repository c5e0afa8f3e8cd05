"""A plan's rows as a Parquet file: a row group for each part, and one for what is not rendered.

A plan of a hundred thousand rows stays small, and a worker reads its own part's rows alone.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hvkf.records import Failure, Part, Record
from hvkf.stages.render_records import RenderTask, record_path
from hvkf.storage import Store
from hvkf.stored import open_parquet

State = Literal["task", "repeated", "failed"]

KEYFRAMES = pa.list_(
    pa.struct(
        [
            ("position", pa.int32()),
            ("path", pa.string()),
            ("sha256", pa.string()),
            ("reading", pa.string()),
        ]
    )
)
FRAMES = pa.list_(pa.struct([("position", pa.int32()), ("path", pa.string())]))
SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("id", pa.string()),
        ("first_frame", pa.string()),
        ("last_frame", pa.string()),
        ("frames", FRAMES),
        ("prompt", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_frames", pa.int32()),
        ("steps", pa.int32()),
        ("guidance", pa.float64()),
        ("true_cfg_scale", pa.float64()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("row_lora", pa.string()),
        ("tags", pa.string()),
        ("keyframes", KEYFRAMES),
        ("lora", pa.string()),
        ("identity", pa.string()),
        ("notes", pa.string()),
        ("state", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
    ]
)
ROW_FIELDS = (
    *("row", "id", "first_frame", "last_frame", "prompt", "width", "height", "num_frames"),
    *("steps", "guidance", "true_cfg_scale", "negative_prompt", "seed", "tags"),
)


class PlannedRow(Record):
    """A row as planned: to be rendered, the same as an earlier row, or failed already."""

    task: RenderTask
    state: State
    failure: Failure | None = None


def to_cells(planned: PlannedRow) -> dict[str, Any]:
    """Write a planned row as a row of the file."""
    task, row, failure = planned.task, planned.task.row, planned.failure
    return {
        **{field: getattr(row, field) for field in ROW_FIELDS},
        "frames": [{"position": place, "path": path} for place, path in row.keyframes],
        "row_lora": row.lora,
        "keyframes": [frame.model_dump() for frame in task.keyframes],
        "lora": task.lora,
        "identity": task.identity,
        "notes": task.notes,
        "state": planned.state,
        "code": failure.code if failure else "",
        "message": failure.message if failure else "",
    }


def from_cells(cells: dict[str, Any]) -> PlannedRow:
    """Read what `to_cells` wrote."""
    row = {
        **{field: cells[field] for field in ROW_FIELDS},
        "keyframes": [(frame["position"], frame["path"]) for frame in cells["frames"]],
        "lora": cells["row_lora"],
    }
    task = {
        **{name: cells[name] for name in ("keyframes", "lora", "identity", "notes")},
        "row": row,
    }
    failure = None
    if cells["state"] == "failed":
        source = f"row {cells['row']} ({cells['id']})"
        failure = {"code": cells["code"], "message": cells["message"], "source": source}
    return PlannedRow.model_validate({"task": task, "state": cells["state"], "failure": failure})


def to_batch(rows: Iterable[PlannedRow]) -> pa.RecordBatch:
    """Encode planned rows in memory, in a tenth of the room that they take as objects."""
    return pa.RecordBatch.from_pylist([to_cells(row) for row in rows], schema=SCHEMA)


def write_groups(table: pa.Table, groups: Sequence[Sequence[int]]) -> bytes:
    """Write rows of a table by their indices, a row group for each sequence; the same each time."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        for indices in groups:
            writer.write_table(table.take(pa.array(indices, pa.int64())), row_group_size=1 << 30)
    return sink.getvalue()


def plan_parts(store: Store, path: str) -> list[Part]:
    """List the parts of a stored file of rows."""
    parts = []
    with open_parquet(store, path) as file:
        for index in range(file.num_row_groups):
            group = file.read_row_group(index, ["identity", "state"], use_threads=False)
            if group["state"][0].as_py() == "task":
                outputs = tuple(map(record_path, group["identity"].to_pylist()))
                parts.append(
                    Part(index=index, outputs=outputs, work={"rows": path, "group": index})
                )
    return parts


def read_parts(store: Store, parts: Sequence[Part]) -> list[RenderTask]:
    """Read the rows of parts of one plan."""
    tasks = []
    if parts:
        with open_parquet(store, str(parts[0].work["rows"])) as file:
            for part in parts:
                group = file.read_row_group(int(part.work["group"]), use_threads=False)
                tasks += [from_cells(cells).task for cells in group.to_pylist()]
    return tasks


def read_all_rows(store: Store, path: str, batch_rows: int = 4096) -> Iterator[PlannedRow]:
    """Yield all rows in the manifest's order, holding few of them as objects."""
    with open_parquet(store, path) as file:
        table = file.read(use_threads=False).sort_by("row")
    for batch in table.to_batches(max_chunksize=batch_rows):
        yield from map(from_cells, batch.to_pylist())
