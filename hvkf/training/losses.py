"""The losses of a run, step by step: `losses.jsonl`, the same however often it was interrupted."""

import hashlib
import math
from typing import Any

from hvkf.errors import CorruptData
from hvkf.records import canonical_json
from hvkf.storage import Store
from hvkf.stored import read_json, refuse_object
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
    decoded = (decode_line(store, path, number, line) for number, line in enumerate(lines, 1))
    rows = [row for row in decoded if row["step"] <= until]
    if [row["step"] for row in rows] != list(range(1, until + 1)):
        raise CorruptData(
            f"{store.url}/{path} does not hold the steps 1 to {until}: restore it, or train again "
            "with another experiment.run_id."
        )
    return rows


def decode_line(store: Store, path: str, number: int, line: bytes) -> Row:
    """Read a line of stored losses.

    Raises:
        CorruptData: it is no step with its loss.
    """
    row = read_json(line, f"{store.url}/{path}, line {number},", fix_of(path))
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        refuse_object(store, path, f"line {number} is no step")
    figures = {name: row[name] for name in row if "loss" in name} | {"loss": row.get("loss")}
    for name, figure in figures.items():
        if type(figure) not in (int, float):
            refuse_object(store, path, f"line {number}: {name} is no number")
    return row


def write_losses(store: Store, run_id: str, rows: list[Row]) -> str:
    """Write all rows; floats keep every bit. Returns the sha256 of the file."""
    data = b"".join(canonical_json(row) + b"\n" for row in rows)
    store.put(f"{run_folder(run_id)}/{NAME}", data)
    return hashlib.sha256(data).hexdigest()


def hash_losses(data: bytes, num_steps: int) -> str:
    """Hash the lines of the first steps, as `write_losses` did after the last of them."""
    lines = data.splitlines(keepends=True)[:num_steps]
    return hashlib.sha256(b"".join(lines)).hexdigest()


def mean_loss(rows: list[Row]) -> float:
    """Average the last steps' losses."""
    last = [row["loss"] for row in rows[-NUM_AVERAGED:]]
    return math.fsum(last) / len(last)


def last_validation(rows: list[Row]) -> float | None:
    """Return the newest validation loss."""
    found = [row["validation_loss"] for row in rows if "validation_loss" in row]
    return found[-1] if found else None
