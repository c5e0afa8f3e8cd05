"""Reads the dataset table: one captioned video per row, as CSV, JSON, JSONL or Parquet."""

import difflib
import math
import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hvkf.errors import BadInput
from hvkf.shown import counted, shown
from hvkf.table_files import Row, TableFile

MAX_ROWS_NAMED = 10
MAX_COLUMNS_NAMED = 12
MAX_NAME_LETTERS = 64


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
        return Row(self.row, self.line, {}).where


def parse_table(
    data: bytes, name: str, *, video_column: str, caption_column: str
) -> list[TableRow]:
    """Read a table from its bytes; the ending of `name` says the format.

    Text is UTF-8, with or without a byte order mark, or UTF-16 with one. A CSV may be separated by
    commas, semicolons, tabs or bars. JSON is a list of records. A missing or empty caption reads as
    "". Blanks around a path do not count, nor do its detours, such as `a/../`.

    Raises:
        BadInput: the format is unknown or broken, the table is too large, a column is missing,
            there is no row, a caption is not text, or a video cell is empty, not text, absolute or
            outside the base folder.
    """
    wanted = (video_column, caption_column)
    table = TableFile(data, name, wanted)
    rows = list(table)
    if not rows:
        raise BadInput(f"The table {name} has no rows: add one for each video.")
    _check_columns(name, list(table.columns), wanted)
    for row in rows:
        if row.num_cells:
            raise BadInput(
                f"In the table {name}, {row.where} has {row.num_cells} cells but the header "
                f"has {len(table.columns)}: put captions that hold the separator in double quotes."
            )
    captions = [_caption(name, row, caption_column) for row in rows]
    videos = [_plain(row.values.get(video_column)) for row in rows]

    for problem, is_faulty in _VIDEO_FAULTS.items():
        _refuse_rows(
            name,
            problem,
            (
                f"{row.where}: {shown(video)}"
                for row, video in zip(rows, videos, strict=True)
                if is_faulty(video)
            ),
        )
    return [
        TableRow(row.number, row.line, posixpath.normpath(video), caption)
        for row, video, caption in zip(rows, videos, captions, strict=True)
    ]


def _plain(video: object) -> Any:
    return video.strip() if isinstance(video, str) else video


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


def _caption(name: str, row: Row, column: str) -> str:
    value = row.values.get(column)
    if _is_null(value):
        return ""
    if not _is_text(value):
        raise BadInput(
            f"In the table {name}, {row.where} has a caption that is not text "
            f"({shown(value)}) in the column {column!r}: write it as text."
        )
    return str(value)


def _check_columns(name: str, columns: list[str], wanted: tuple[str, str]) -> None:
    missing = [column for column in wanted if column not in columns]
    if not missing:
        return
    short = [column for column in columns if len(column) <= MAX_NAME_LETTERS]
    near = {column: difflib.get_close_matches(column, short, n=1, cutoff=0.5) for column in missing}
    hints = [f" Is {column!r} there as {names[0]!r}?" for column, names in near.items() if names]
    named = ", ".join(map(repr, short[:MAX_COLUMNS_NAMED]))
    more = len(columns) - len(short[:MAX_COLUMNS_NAMED])
    raise BadInput(
        f"The table {name} has no column {' and no column '.join(map(repr, missing))}; it has "
        f"{named or 'none'}{f' and {more} more' if more else ''}: "
        f"name its columns in the settings.{''.join(hints)}"
    )


def _refuse_rows(name: str, problem: str, shown: Iterable[str]) -> None:
    rows = list(shown)
    if not rows:
        return
    more = len(rows) - MAX_ROWS_NAMED
    raise BadInput(
        f"The table {name} has {counted(len(rows), 'row')} {problem}: "
        + ", ".join(rows[:MAX_ROWS_NAMED])
        + (f" and {more} more." if more > 0 else ".")
    )
