"""Reads the dataset table: one captioned video per row, as CSV, JSON, JSONL or Parquet."""

import csv
import difflib
import functools
import io
import json
import math
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvkf.errors import BadInput

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
MAX_ROWS_NAMED = 10


@dataclass(frozen=True)
class TableRow:
    """A video and its caption, as written; `video` is relative to the data set's base folder.

    `row` counts data rows from 1; `line` is where the row starts in a CSV or JSONL file, else None.
    """

    row: int
    line: int | None
    video: str
    caption: str

    @property
    def where(self) -> str:
        """The row in words, for messages."""
        return _where(self.row, self.line)


@dataclass(frozen=True)
class _Cells:
    """A row before its cells are checked."""

    row: int
    line: int | None
    values: dict[str, Any]


def read_table(
    path: str | Path, *, video_column: str, caption_column: str, base_dir: str | Path
) -> list[TableRow]:
    """Read a table from a local file; its video paths must stay inside `base_dir`.

    Whether the videos exist is not looked at: a missing one is a fault of that item alone.

    Raises:
        BadInput: as `parse_table`, and when the file or the base folder is missing, or a path
            leaves the base folder through a symbolic link.
    """
    path, base = Path(path), Path(base_dir)
    if not base.is_dir():
        raise BadInput(f"The base folder {base} is not a folder: set it to where the videos lie.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"There is no table {path}: check the path.") from None
    except OSError as fault:
        raise BadInput(f"The table {path} cannot be read: {fault.strerror}.") from fault
    rows = parse_table(
        data, path.suffix, str(path), video_column=video_column, caption_column=caption_column
    )
    inside = _LinkFollower(base)
    _refuse_rows(
        str(path),
        f"whose video lies outside {base} behind a symbolic link (copy the video into the folder)",
        (f"{row.where}: {row.video!r}" for row in rows if not inside(row.video)),
    )
    return rows


def parse_table(
    data: bytes, suffix: str, name: str, *, video_column: str, caption_column: str
) -> list[TableRow]:
    """Read a table from its bytes; `suffix` says the format, `name` is for messages.

    Text is UTF-8, with or without a byte order mark. A CSV may be separated by commas, semicolons,
    tabs or bars. JSON is a list of records. A missing or empty caption reads as "".

    Raises:
        BadInput: the format is unknown or broken, a column is missing, there is no row, a caption
            is not text, or a video cell is empty, not text, absolute or outside the base folder.
    """
    readers: dict[str, Callable[[bytes, str, tuple[str, str]], list[_Cells]]] = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    reader = readers.get(suffix.lower())
    if reader is None:
        raise BadInput(
            f"The table {name} ends in {suffix!r}: a table is one of {', '.join(SUFFIXES)}."
        )
    cells = reader(data, name, (video_column, caption_column))
    if not cells:
        raise BadInput(f"The table {name} has no rows: add one for each video.")
    captions = [_caption(name, entry, caption_column) for entry in cells]
    videos = [entry.values.get(video_column) for entry in cells]

    for problem, is_faulty in _VIDEO_FAULTS.items():
        _refuse_rows(
            name,
            problem,
            (
                f"{_where(entry.row, entry.line)}: {video!r}"
                for entry, video in zip(cells, videos, strict=True)
                if is_faulty(video)
            ),
        )
    return [
        TableRow(entry.row, entry.line, str(video), caption)
        for entry, video, caption in zip(cells, videos, captions, strict=True)
    ]


def _is_missing(value: object) -> bool:
    return _is_null(value) or (isinstance(value, str) and not value.strip())


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_text(value: object) -> bool:
    """Say whether a value is text that can be stored: JSON can spell what UTF-8 cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_no_path(value: object) -> bool:
    return not _is_text(value) or "\0" in str(value)


def _is_absolute(value: str) -> bool:
    is_windows_or_url = re.match(r"[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]*://", value)
    return value.startswith("/") or is_windows_or_url is not None


def _is_outside(value: str) -> bool:
    return posixpath.normpath(value).split("/")[0] in ("..", ".")


# Checked in this order: each may count on those before it.
_VIDEO_FAULTS: dict[str, Callable[[Any], bool]] = {
    "without a video (fill the cell or remove the row)": _is_missing,
    "whose video is not text (write its path)": _is_no_path,
    "with an absolute path (write it relative to the base folder)": _is_absolute,
    "with backslashes in the path (write forward slashes)": lambda value: "\\" in value,
    "with a path that leaves the base folder (move the video into the folder)": _is_outside,
}


def _caption(name: str, entry: _Cells, column: str) -> str:
    value = entry.values.get(column)
    if _is_null(value):
        return ""
    if not _is_text(value):
        raise BadInput(
            f"In the table {name}, {_where(entry.row, entry.line)} has a caption that is not text "
            f"({value!r}) in the column {column!r}: write it as text."
        )
    return str(value)


class _LinkFollower:
    """Tells whether a path below a base folder is still inside it when links are followed."""

    def __init__(self, base: Path) -> None:
        self.base = os.path.realpath(base)
        # Tables name many videos of few folders: a folder's links are followed once.
        self.real_folder = functools.cache(os.path.realpath)

    def __call__(self, video: str) -> bool:
        folder, file_name = os.path.split(os.path.join(self.base, video))
        target = os.path.join(self.real_folder(folder), file_name)
        if file_name in ("", ".", "..") or os.path.islink(target):
            target = os.path.realpath(target)
        return os.path.commonpath([self.base, target]) == self.base


def _read_csv(data: bytes, name: str, wanted: tuple[str, str]) -> list[_Cells]:
    text = _decode(data, name)
    # The limit of 131072 characters is for the whole process and guards nothing in bounded data.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    records = _csv_records(text, name, _delimiter(text, wanted))
    _, header = next(records, (0, []))
    if not header:
        return []
    _check_columns(name, header, wanted)
    cells = []
    for row, (line, values) in enumerate(records, start=1):
        if any(values[len(header) :]):
            raise BadInput(
                f"In the table {name}, {_where(row, line)} has {len(values)} cells but the header "
                f"has {len(header)}: put captions that hold the separator in double quotes."
            )
        cells.append(_Cells(row, line, dict(zip(header, values, strict=False))))
    return cells


def _csv_records(text: str, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank, with the line each starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for values in reader:
            if values:
                yield line, values
            line = reader.line_num + 1
    except csv.Error as fault:
        raise BadInput(
            f"In the table {name}, the record that starts on line {line} is not valid CSV "
            f"({fault}): close its quotes, and double the quotes inside quoted cells."
        ) from fault


def _delimiter(text: str, wanted: tuple[str, str]) -> str:
    """Choose the separator that finds most of the wanted columns in the header, then most at all.

    Python's own sniffer looks at the captions too, and prose misleads it.
    """

    def num_found(delimiter: str) -> tuple[int, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header: list[str] = next(filter(None, reader), [])
        return len(set(wanted) & set(header)), len(header)

    return max(",;\t|", key=num_found)


def _read_json(data: bytes, name: str, wanted: tuple[str, str]) -> list[_Cells]:
    records = _parse_json(_decode(data, name), name, "")
    if not isinstance(records, list):
        raise BadInput(
            f"The table {name} holds no list: write a list of records, [{{...}}, {{...}}]."
        )
    return _cells_of_records(((None, record) for record in records), name, wanted)


def _read_jsonl(data: bytes, name: str, wanted: tuple[str, str]) -> list[_Cells]:
    # Not splitlines: a caption may hold other line separators that JSON does not escape.
    lines = enumerate(_decode(data, name).split("\n"), start=1)
    parsed = (
        (line, _parse_json(text, name, f", line {line},")) for line, text in lines if text.strip()
    )
    return _cells_of_records(parsed, name, wanted)


def _parse_json(text: str, name: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BadInput(f"The table {name}{where} is not valid JSON: {fault}.") from fault


def _cells_of_records(
    records: Iterable[tuple[int | None, object]], name: str, wanted: tuple[str, str]
) -> list[_Cells]:
    cells = []
    for row, (line, record) in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise BadInput(
                f"In the table {name}, {_where(row, line)} is not a record: write "
                f'{{"{wanted[0]}": "...", "{wanted[1]}": "..."}}.'
            )
        cells.append(_Cells(row, line, record))
    if cells:
        # A record may leave its caption out, so a column is there when any record has it.
        _check_columns(name, list(dict.fromkeys(key for c in cells for key in c.values)), wanted)
    return cells


def _read_parquet(data: bytes, name: str, wanted: tuple[str, str]) -> list[_Cells]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Without Arrow's threads: these may abort a process that ends soon afterwards.
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False)
        columns = list(file.schema_arrow.names)
        _check_columns(name, columns, wanted)
        table = file.read(columns=list(wanted), use_threads=False)
        values = [table.column(column).to_pylist() for column in wanted]
    except (pyarrow.ArrowException, OSError) as fault:
        raise BadInput(f"The table {name} is not a readable Parquet file: {fault}") from fault
    return [
        _Cells(row, None, dict(zip(wanted, pair, strict=True)))
        for row, pair in enumerate(zip(*values, strict=True), start=1)
    ]


def _decode(data: bytes, name: str) -> str:
    is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # what spreadsheets call Unicode text
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise BadInput(
            f"The table {name} is not UTF-8 on line {line} (byte {fault.start}): save it as UTF-8."
        ) from fault


def _check_columns(name: str, columns: list[str], wanted: tuple[str, str]) -> None:
    for column in wanted:
        if columns.count(column) > 1:
            raise BadInput(f"The table {name} has two columns {column!r}: rename one of them.")
    missing = [column for column in wanted if column not in columns]
    if not missing:
        return
    near = {
        column: difflib.get_close_matches(column, columns, n=1, cutoff=0.5) for column in missing
    }
    hints = [f" Is {column!r} there as {names[0]!r}?" for column, names in near.items() if names]
    raise BadInput(
        f"The table {name} has no column {' and no column '.join(map(repr, missing))}; it has "
        f"{', '.join(map(repr, columns))}: name its columns in the settings.{''.join(hints)}"
    )


def _refuse_rows(name: str, problem: str, shown: Iterable[str]) -> None:
    rows = list(shown)
    if not rows:
        return
    more = len(rows) - MAX_ROWS_NAMED
    raise BadInput(
        f"The table {name} has {len(rows)} row{'s' if len(rows) > 1 else ''} {problem}: "
        + ", ".join(rows[:MAX_ROWS_NAMED])
        + (f" and {more} more." if more > 0 else ".")
    )


def _where(row: int, line: int | None) -> str:
    return f"row {row}" if line is None else f"row {row} (line {line})"
