"""The losses of a run, step by step: `losses.jsonl`, the same however often it was interrupted."""

import math
from collections.abc import Iterator
from typing import Any

from hvkf.errors import CorruptData
from hvkf.records import canonical_json
from hvkf.storage import Store
from hvkf.stored import decode_json, refuse_object
from hvkf.stored_kinds import fix_of
from hvkf.training.runs import run_folder

NAME = "losses.jsonl"
NUM_AVERAGED = 100
VALIDATION_AT = "validation_loss_at_"
"""Before a noise level: the key of the validation loss at that level alone."""

Row = dict[str, Any]


def read_losses(store: Store, run_id: str, until: int) -> list[Row]:
    """Read the rows of the steps up to `until`; later ones belong to steps that are done anew.

    Raises:
        CorruptData: a row is gone; each was written before its step's checkpoint.
    """
    path = f"{run_folder(run_id)}/{NAME}"
    lines = store.read(path).splitlines() if store.exists(path) else []
    rows = [row for row in _decoded(store, path, lines) if row["step"] <= until]
    if [row["step"] for row in rows] != list(range(1, until + 1)):
        raise CorruptData(
            f"{store.url}/{path} does not hold the steps 1 to {until}: restore it, or train again "
            "with another experiment.run_id."
        )
    return rows


def _decoded(store: Store, path: str, lines: list[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        where = f"{store.url}/{path}, line {number},"
        row = decode_json(line, where, fix_of(path))
        figures = row.values() if isinstance(row, dict) else [None]
        if not isinstance(row, dict) or type(row.get("step")) is not int or "loss" not in row:
            refuse_object(store, path, f"line {number} is no step with its loss")
        if not all(type(figure) in (int, float) for figure in figures):
            refuse_object(store, path, f"a figure in line {number} is no number")
        yield row


def write_losses(store: Store, run_id: str, rows: list[Row]) -> None:
    """Write all rows; floats keep every bit."""
    data = b"".join(canonical_json(row) + b"\n" for row in rows)
    store.put(f"{run_folder(run_id)}/{NAME}", data)


def mean_loss(rows: list[Row]) -> float:
    """Average the last steps' losses."""
    last = [row["loss"] for row in rows[-NUM_AVERAGED:]]
    return math.fsum(last) / len(last)


def last_validation(rows: list[Row]) -> float | None:
    """Return the newest validation loss."""
    found = [row["validation_loss"] for row in rows if "validation_loss" in row]
    return found[-1] if found else None
