"""All errors of a manifest's rows: as one short sentence, as a table, and as a CSV."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple, Self

from hvkf.errors import BadInput
from hvkf.shown import counted, cut

MAX_TOLD_LETTERS = 330
MAX_ERROR_LETTERS = 240
MAX_NAME_LETTERS = 120
MAX_TABLE_ROWS = 200
MAX_CELL_LETTERS = 100
COLUMNS = ("row", "id", "field", "value", "what to do")


class RowError(NamedTuple):
    """What is wrong with one cell of a row, which counts from 1, and the fix."""

    row: int
    id: str
    field: str
    value: str
    message: str

    def __str__(self) -> str:
        what = f"{self.field} is {self.value}: " if self.field else ""
        return f"row {self.row}: {what}{self.message}"


class RowImages(NamedTuple):
    """A row's keyframes, as far as their cells can be read: field and path."""

    row: int
    id: str
    images: tuple[tuple[str, str], ...]


class ManifestError(BadInput):
    """Rows of a manifest cannot be rendered; `errors` are all of them, in order.

    Args:
        name: The manifest's path or address.
        errors: At least one.
        num_rows: Of the manifest.
        note: Said behind the sentence, such as where the CSV of the errors lies.
    """

    def __init__(
        self,
        name: str,
        errors: Sequence[RowError],
        num_rows: int,
        note: str = "",
    ) -> None:
        self.name = name
        self.errors = tuple(errors)
        self.num_rows = num_rows
        self.note = note
        super().__init__(self._sentence())

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.name, self.errors, self.num_rows, self.note)

    @property
    def details(self) -> tuple[str, ...]:
        """The errors as the lines of a table."""
        return tuple(table_of(self.errors))

    def told(self, errors: Sequence[RowError], note: str = "") -> Self:
        """Make the same error of these rows' errors."""
        in_order = sorted(errors, key=lambda error: error.row)
        return type(self)(self.name, in_order, self.num_rows, note)

    def _sentence(self) -> str:
        num, rows = len(self.errors), self.num_rows
        told = _first_of(self.errors)
        more = num - len(told)
        return (
            f"The manifest {cut(self.name, MAX_NAME_LETTERS)} cannot be rendered; "
            f"{counted(num, 'error')} in {counted(rows, 'row')}: {'; '.join(told)}"
            + (f"; and {more} more" if more > 0 else "")
            + "."
            + (f" {self.note}" if self.note else "")
        )


def _first_of(errors: Sequence[RowError]) -> list[str]:
    """Write as many errors as a sentence can hold, and at least one."""
    told: list[str] = []
    for error in errors:
        text = cut(str(error), MAX_ERROR_LETTERS)
        if told and sum(map(len, told)) + len(text) > MAX_TOLD_LETTERS:
            break
        told.append(text)
    return told


def table_of(errors: Sequence[RowError]) -> list[str]:
    """Write errors as a table in Markdown, with columns that stand below each other."""
    rows = [COLUMNS, *(tuple(map(_cell, error)) for error in errors[:MAX_TABLE_ROWS])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    more = len(errors) - MAX_TABLE_ROWS
    return [*lines, f"and {more} more; the CSV has all of them"] if more > 0 else lines


def _cell(value: object) -> str:
    text = cut(" ".join(str(value).split()), MAX_CELL_LETTERS).replace("|", "\\|")
    return text if text.isprintable() else ascii(text)[1:-1]


def as_csv(errors: Sequence[RowError]) -> bytes:
    """Write errors as a CSV that spreadsheets open; none of its cells is taken for a formula."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(COLUMNS)
    writer.writerows([_plain(cell) for cell in error] for error in errors)
    return sink.getvalue().encode("utf-8-sig", "backslashreplace")


def _plain(cell: str | int) -> str | int:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell
