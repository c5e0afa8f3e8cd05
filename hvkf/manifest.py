"""The render manifest: one keyframe pair per row, as CSV, JSON, JSONL or Parquet.

All faults of a manifest are found before anything is done, and said together.
"""

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from hvkf.buckets import SIDE_MULTIPLE, TEMPORAL_MULTIPLE
from hvkf.errors import BadInput, ConfigError
from hvkf.records import Record
from hvkf.settings.rendering import RenderConfig
from hvkf.storage import open_folder

REQUIRED = ("id", "first_frame", "last_frame", "prompt")
OPTIONAL = ("width", "height", "num_frames", "steps", "guidance", "seed")
COLUMNS = (*REQUIRED, *OPTIONAL)
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
MAX_SIDE = 4096
MIN_FRAMES, MAX_FRAMES = 5, 513
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_SHOWN_FAULTS = 100
SIMILAR_NAME = 0.75
EXTRA_CELLS = "cells behind the last column"


class ManifestRow(Record):
    """One keyframe pair to render, its gaps filled from the settings.

    `row` counts from 1; the frames are paths relative to the manifest's folder.
    """

    row: int
    id: str
    first_frame: str
    last_frame: str
    prompt: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance: float
    seed: int

    @property
    def shape(self) -> str:
        """Size and length as WxHxF."""
        return f"{self.width}x{self.height}x{self.num_frames}"


class Location(NamedTuple):
    """A file, and the folder or `s3://` prefix that it lies in."""

    folder: str
    name: str


def split_location(path: str) -> Location:
    """Split a path or an `s3://` address into its folder and its file's name."""
    folder, _, name = path.rpartition("/")
    return Location(folder or ("/" if path.startswith("/") else "."), name)


def read_manifest(defaults: RenderConfig) -> list[ManifestRow]:
    """Read the manifest that the settings name, from a folder or from `s3://`.

    Raises:
        BadInput: none is set, there is no such file, or see `parse_manifest`.
    """
    if defaults.manifest is None:
        raise BadInput(
            "render.manifest is not set: name a CSV, JSON, JSONL or Parquet file with the columns "
            f"{', '.join(REQUIRED)}."
        )
    folder, name = split_location(defaults.manifest)
    try:
        data = open_folder(folder).read(name)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(
            f"There is no manifest {defaults.manifest!r}: set render.manifest to a file with the "
            f"columns {', '.join(REQUIRED)}."
        ) from None
    return parse_manifest(data, defaults.manifest, defaults)


def parse_manifest(data: bytes, name: str, defaults: RenderConfig) -> list[ManifestRow]:
    """Read a manifest from its bytes; `name` says the format and stands in messages.

    Args:
        data: Text is UTF-8; a CSV is separated by commas, semicolons, tabs or bars.
        name: The manifest's path.
        defaults: What a row without a width, height, num_frames, steps, guidance or seed gets.

    Raises:
        ConfigError: a default cannot be rendered.
        BadInput: the file is broken or has no rows, or naming every row's faults.
    """
    filled = _check_defaults(defaults)
    cells = list(_read_cells(data, name))
    if not cells:
        raise BadInput(f"The manifest {name} has no rows: add a row for each pair.")
    _check_columns(cells, name)
    rows: list[ManifestRow] = []
    faults: list[str] = []
    first_with: dict[object, int] = {}
    for number, values in enumerate(cells, start=1):
        parsed, problems = _parse_row(values, filled)
        first = first_with.setdefault(parsed.get("id", number), number)
        if first != number:
            problems.append(f"id is {parsed['id']!r}: row {first} has it; rename one of them")
        faults += [f"row {number}: {problem}" for problem in problems]
        if not problems:
            rows.append(ManifestRow.model_validate({"row": number, **parsed}))
    if faults:
        more = len(faults) - MAX_SHOWN_FAULTS
        raise BadInput(
            f"The manifest {name} cannot be rendered; {len(faults)} faults in {len(cells)} rows: "
            + "; ".join(faults[:MAX_SHOWN_FAULTS])
            + (f"; and {more} more" if more > 0 else "")
            + "."
        )
    return rows


def _check_defaults(defaults: RenderConfig) -> dict[str, Any]:
    filled, problems = {}, []
    for field in OPTIONAL:
        value = getattr(defaults, field)
        try:
            filled[field] = PARSERS[field](value)
        except ValueError as fault:
            problems.append(f"render.{field} is {value!r}: {fault}")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return filled


def _parse_row(
    values: Mapping[str, Any], filled: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    parsed, problems = {}, []
    if EXTRA_CELLS in values:
        problems.append(
            "it has more cells than the header: put prompts that hold the separator in quotes"
        )
    for field in COLUMNS:
        value = values.get(field)
        if field in filled and _is_missing(value):
            parsed[field] = filled[field]
            continue
        try:
            parsed[field] = PARSERS[field](value)
        except ValueError as fault:
            problems.append(f"{field} is {value!r}: {fault}")
    return parsed, problems


def _is_missing(value: object) -> bool:
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or (isinstance(value, str) and not value.strip())


def _text(value: object) -> str:
    """Read text that can be stored: JSON can spell what UTF-8 cannot."""
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("write text")
    if "\0" in value:
        raise ValueError("remove the NUL character")
    return value


def _id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if _is_missing(value):
        raise ValueError("give the row a name of its own")
    text = _text(value).strip()
    if not text.isprintable() or "/" in text or "\\" in text:
        raise ValueError("write printable characters without slashes")
    return text


def _frame(value: object) -> str:
    if _is_missing(value):
        raise ValueError("write an image's path, relative to the manifest")
    text = _text(value).strip()
    if text.startswith("/") or re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError("write it relative to the manifest's folder")
    if "\\" in text:
        raise ValueError("write forward slashes")
    if ".." in PurePosixPath(text).parts:
        raise ValueError("it leaves the manifest's folder; move the image there, drop the '..'")
    return str(PurePosixPath(text))


def _prompt(value: object) -> str:
    return "" if _is_missing(value) else _text(value).strip()


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("write a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("write a number") from None
    if not math.isfinite(number):
        raise ValueError("write a finite number")
    return number


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(value)
    if not number.is_integer():
        raise ValueError("write a whole number")
    return int(number)


def _side(value: object) -> int:
    side = _whole(value)
    if not SIDE_MULTIPLE <= side <= MAX_SIDE or side % SIDE_MULTIPLE:
        near = _two_nearest(side, SIDE_MULTIPLE, 0, (SIDE_MULTIPLE, MAX_SIDE))
        raise ValueError(f"write a multiple of {SIDE_MULTIPLE} up to {MAX_SIDE}, such as {near}")
    return side


def _num_frames(value: object) -> int:
    count = _whole(value)
    if not MIN_FRAMES <= count <= MAX_FRAMES or count % TEMPORAL_MULTIPLE != 1:
        near = _two_nearest(count, TEMPORAL_MULTIPLE, 1, (MIN_FRAMES, MAX_FRAMES))
        raise ValueError(f"write 4k+1, from {MIN_FRAMES} to {MAX_FRAMES}, such as {near}")
    return count


def _two_nearest(value: int, multiple: int, offset: int, limits: tuple[int, int]) -> str:
    below = (value - offset) // multiple * multiple + offset
    near = {min(max(choice, limits[0]), limits[1]) for choice in (below, below + multiple)}
    return " or ".join(map(str, sorted(near)))


def _steps(value: object) -> int:
    steps = _whole(value)
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"write a number of steps from 1 to {MAX_STEPS}")
    return steps


def _guidance(value: object) -> float:
    guidance = _number(value)
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise ValueError(f"write a number from 0 to {MAX_GUIDANCE:g}")
    return guidance


PARSERS: dict[str, Callable[[object], Any]] = {
    "id": _id,
    "first_frame": _frame,
    "last_frame": _frame,
    "prompt": _prompt,
    "width": _side,
    "height": _side,
    "num_frames": _num_frames,
    "steps": _steps,
    "guidance": _guidance,
    "seed": _whole,
}


def _check_columns(cells: Sequence[Mapping[str, Any]], name: str) -> None:
    """Refuse a manifest without a needed column, or with one whose name is nearly a known one."""
    columns = list(dict.fromkeys(key for values in cells for key in values))
    missing = [column for column in REQUIRED if column not in columns]
    hints = []
    for column in columns:
        if column not in COLUMNS:
            free = [known for known in COLUMNS if known not in columns]
            near = difflib.get_close_matches(column.lower(), free, 1, SIMILAR_NAME)
            hints += [f"column {column!r} must be written {near[0]!r}"] if near else []
    if missing or hints:
        lacking = [f"it has no column {column!r}" for column in missing]
        raise BadInput(
            f"The manifest {name} cannot be read: {'; '.join([*lacking, *hints])}; needed are "
            f"{', '.join(REQUIRED)}; {', '.join(OPTIONAL)} may be there."
        )


def _read_cells(data: bytes, name: str) -> Iterable[dict[str, Any]]:
    suffix = PurePosixPath(name).suffix.lower()
    readers: dict[str, Callable[[bytes, str], Iterable[dict[str, Any]]]] = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        raise BadInput(f"The manifest {name} ends in {suffix!r}: use {', '.join(SUFFIXES)}.")
    return readers[suffix](data, name)


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise BadInput(f"Line {line} of the manifest {name} is not UTF-8: save it so.") from fault


def _read_csv(data: bytes, name: str) -> list[dict[str, Any]]:
    text = _decode(data, name)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=header.count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, restkey=EXTRA_CELLS, strict=True
    )
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        if len(set(columns)) < len(columns):
            raise BadInput(f"The manifest {name} has two columns of one name: rename one.")
        return list(reader)
    except csv.Error as fault:
        raise BadInput(
            f"Line {reader.line_num} of the manifest {name} is not valid CSV ({fault}): close its "
            "quotes, and double the quotes inside quoted cells."
        ) from fault


def _read_json(data: bytes, name: str) -> list[dict[str, Any]]:
    records = _parse_json(_decode(data, name), f"The manifest {name}")
    if not isinstance(records, list):
        raise BadInput(f"The manifest {name} holds no list: write [{{...}}, {{...}}].")
    return [_mapping(record, number, name) for number, record in enumerate(records, start=1)]


def _read_jsonl(data: bytes, name: str) -> list[dict[str, Any]]:
    # Not splitlines: a prompt may hold other line separators that JSON does not escape.
    lines = enumerate(_decode(data, name).split("\n"), start=1)
    records = [
        _parse_json(line, f"Line {number} of the manifest {name}")
        for number, line in lines
        if line.strip()
    ]
    return [_mapping(record, number, name) for number, record in enumerate(records, start=1)]


def _parse_json(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BadInput(f"{origin} is not valid JSON: {fault}.") from fault


def _mapping(record: object, number: int, name: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise BadInput(f'Row {number} of the manifest {name} is not a record: write {{"id": ...}}.')
    return record


def _read_parquet(data: bytes, name: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pyarrow.ArrowException, OSError) as fault:
        raise BadInput(f"The manifest {name} is not a readable Parquet file: {fault}.") from fault
    return rows
