"""Reads the rows of a table that a person brings: CSV, JSON, JSONL or Parquet, a row at a time.

The one reader of tables of videos and of manifests. Only the columns that are asked for are kept.
"""

import csv
import io
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from hvkf.errors import BadInput
from hvkf.storage import open_folder
from hvkf.user_files import reason_of, shortened

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
MAX_TABLE_BYTES = 256 << 20
MAX_ROWS = 1_000_000
MAX_COLUMNS = 1000
MAX_CELL_LETTERS = 1 << 20
SEPARATORS = ",;\t|"
# Excel writes the separator in front of the header when it is not that of the country.
SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")
MAX_SHOWN = 200

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 80
_shorten.maxlevel = 3


def shown(value: object) -> str:
    """Spell a value for a message: as `repr`, but never long, however deep or large it is."""
    return _shorten.repr(value)


def read_file(path: str, missing: str) -> bytes:
    """Read a table's bytes from a path or an `s3://` address.

    Args:
        path: Where it lies.
        missing: What is said when there is none.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    folder, _, name = path.rpartition("/")
    if not name:
        raise BadInput(missing)
    try:
        store = open_folder(folder or ("/" if path.startswith("/") else "."))
        size = store.stat(name).size
        if size > MAX_TABLE_BYTES:
            raise BadInput(
                f"{path} has {size >> 20} MiB, more than {MAX_TABLE_BYTES >> 20}: split it."
            )
        return store.read(name)  # a named pipe or a device is refused there, not waited for
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadInput(missing) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{shortened(path)} cannot be read: {reason_of(error)}.") from error


class Row(NamedTuple):
    """A row before its cells are looked at.

    Attributes:
        number: Data rows count from 1.
        line: Where it starts in a CSV or JSONL file, else None.
        values: The cells of the columns that were asked for, where the row has them.
        num_cells: How many cells a CSV's row has when these are more than the header's, else 0.
    """

    number: int
    line: int | None
    values: dict[str, Any]
    num_cells: int = 0

    @property
    def where(self) -> str:
        """The row in words, for messages."""
        return f"row {self.number}" + ("" if self.line is None else f" (line {self.line})")


class TableFile:
    """The rows of a table; iterate once.

    Args:
        data: The file's bytes. Text is UTF-8 with or without a byte order mark, or UTF-16 with one.
            A CSV is separated by commas, semicolons, tabs or bars.
        name: The file's path; its ending says the format.
        wanted: The columns to keep; a CSV's separator is the one that finds most of them.
        kind: What messages call it: table or manifest.

    Attributes:
        columns: The names of all columns that are there; complete when all rows were read.
    """

    def __init__(self, data: bytes, name: str, wanted: Sequence[str], kind: str = "table") -> None:
        self.label = f"The {kind} {name}"
        self.columns: dict[str, None] = {}
        self._data = data
        self._wanted = frozenset(wanted)
        self._suffix = PurePosixPath(name).suffix.lower()
        readers: dict[str, Callable[[], Iterator[Row]]] = {
            ".csv": self._csv_rows,
            ".tsv": self._csv_rows,
            ".json": self._json_rows,
            ".jsonl": self._jsonl_rows,
            ".parquet": self._parquet_rows,
        }
        if self._suffix not in readers:
            raise BadInput(
                f"{self.label} ends in {self._suffix!r}: a {kind} is one of {', '.join(SUFFIXES)}."
            )
        if len(data) > MAX_TABLE_BYTES:
            raise BadInput(
                f"{self.label} has {len(data) >> 20} MiB, more than {MAX_TABLE_BYTES >> 20}: split "
                "it."
            )
        self._rows = readers[self._suffix]

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            BadInput: the file is broken, too large, or has a wanted column twice; it may come after
                some rows.
        """
        for row in self._rows():
            if row.number > MAX_ROWS:
                raise self._too_many_rows()
            for column, value in row.values.items():
                if isinstance(value, str) and len(value) > MAX_CELL_LETTERS:
                    raise BadInput(
                        f"{self.label} has a cell of {len(value)} letters in {row.where}, column "
                        f"{column!r}; {MAX_CELL_LETTERS} are the most."
                    )
            yield row

    def _too_many_rows(self) -> BadInput:
        return BadInput(f"{self.label} has more than {MAX_ROWS} rows: split it.")

    def _note_columns(self, names: Iterable[str]) -> None:
        self.columns.update(dict.fromkeys(names))
        if len(self.columns) > MAX_COLUMNS:
            raise BadInput(f"{self.label} has more than {MAX_COLUMNS} columns: remove some.")

    def _refuse_twice(self, names: Sequence[str], where: str = "") -> None:
        for name in self._wanted.intersection(names):
            if names.count(name) > 1:
                raise BadInput(f"{self.label}{where} has two columns {name!r}: rename one of them.")

    def _text(self) -> str:
        data = self._data
        # What spreadsheets call Unicode text is UTF-16.
        encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise BadInput(
                f"{self.label} is not UTF-8 on line {line} (byte {error.start}): save it as UTF-8."
            ) from None

    def _csv_rows(self) -> Iterator[Row]:
        text, first_line = self._text(), 1
        # The limit of 131072 characters is for the whole process and guards nothing here.
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        separator = SEPARATOR_LINE.match(text)
        if separator:
            text, first_line = text[separator.end() :], 2
        delimiter = separator.group(1) if separator else self._delimiter(text)
        records = self._csv_records(text, delimiter, first_line)
        _, header = next(records, (0, list[str]()))
        if any("\0" in name for name in header):
            raise BadInput(f"{self.label} is no text in UTF-8: save it as UTF-8.")
        header = [name.strip() for name in header]
        self._refuse_twice(header)
        self._note_columns(header)
        kept = [(place, name) for place, name in enumerate(header) if name in self._wanted]
        for number, (line, cells) in enumerate(records, start=1):
            values = {name: cells[place] for place, name in kept if place < len(cells)}
            is_longer = any(cells[len(header) :])
            yield Row(number, line, values, len(cells) if is_longer else 0)

    def _csv_records(
        self, text: str, delimiter: str, first_line: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the records that are not blank, with the line each starts on.

        Rows of empty cells are blank: spreadsheets write them below the last.
        """
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        except (TypeError, ValueError):
            raise BadInput(
                f"{self.label} says that {delimiter!r} is its separator: use one of , ; | or a tab."
            ) from None
        line = first_line
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield line, cells
                line = reader.line_num + first_line
        except csv.Error as error:
            raise BadInput(
                f"{self.label}: the record that starts on line {line} is not valid CSV ({error}): "
                "close its quotes, and double the quotes inside quoted cells."
            ) from None

    def _delimiter(self, text: str) -> str:
        """Choose the separator that finds most wanted columns in the header, then most at all.

        Python's own sniffer looks at the captions too, and prose misleads it.
        """

        def num_found(delimiter: str) -> tuple[int, int]:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            header: list[str] = next(filter(None, reader), [])
            return len(self._wanted.intersection(name.strip() for name in header)), len(header)

        return max(SEPARATORS, key=num_found)

    def _json_rows(self) -> Iterator[Row]:
        records = self._parsed(self._text(), "")
        if not isinstance(records, list):
            raise BadInput(
                f"{self.label} holds no list: write a list of records, [{{...}}, {{...}}]."
            )
        for number, record in enumerate(records, start=1):
            yield self._record(number, None, record)

    def _jsonl_rows(self) -> Iterator[Row]:
        number = 0
        # Not splitlines: a caption may hold other line separators that JSON does not escape.
        for line, text in enumerate(io.StringIO(self._text(), newline="\n"), start=1):
            if text.strip():
                number += 1
                yield self._record(number, line, self._parsed(text, f", line {line},"))

    def _parsed(self, text: str, where: str) -> Any:
        num_records = 0

        def record_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal num_records
            num_records += 1
            if num_records > MAX_ROWS:
                raise self._too_many_rows()
            record = dict(pairs)
            if len(record) < len(pairs):
                self._refuse_twice([name for name, _ in pairs], where)
            return record

        try:
            return json.loads(text, object_pairs_hook=record_of)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{self.label}{where} is not valid JSON: {str(error)[:MAX_SHOWN]}."
            ) from None

    def _record(self, number: int, line: int | None, record: object) -> Row:
        row = Row(number, line, {})
        if not isinstance(record, dict):
            example = ", ".join(f'"{name}": "..."' for name in sorted(self._wanted)[:2])
            raise BadInput(f"{self.label}, {row.where}, is not a record: write {{{example}}}.")
        self._note_columns(record)
        values = {name: record[name] for name in self._wanted if name in record}
        return Row(number, line, values)

    def _parquet_rows(self) -> Iterator[Row]:
        from hvkf.parquet_rows import read_parquet_rows  # Arrow takes half a second

        def check(names: list[str]) -> None:
            self._refuse_twice(names)
            self._note_columns(names)

        rows = read_parquet_rows(self._data, self.label, self._wanted, check, MAX_ROWS)
        for number, values in enumerate(rows, start=1):
            yield Row(number, None, values)
