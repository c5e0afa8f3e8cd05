"""Reads the cells of a manifest's rows: CSV, JSON, JSONL or Parquet, a row at a time."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from hvkf.errors import BadInput

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
EXTRA_CELLS = "cells behind the last column"
PARQUET_BATCH_ROWS = 4096

Cells = dict[str, Any]


def read_cells(data: bytes, name: str) -> Iterator[Cells]:
    """Yield each row's cells by column, as they are written.

    Raises:
        BadInput: the file is broken, or of another kind; it may come after some rows.
    """
    suffix = PurePosixPath(name).suffix.lower()
    readers: dict[str, Callable[[bytes, str], Iterator[Cells]]] = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        raise BadInput(f"The manifest {name} ends in {suffix!r}: use {', '.join(SUFFIXES)}.")
    return readers[suffix](data, name)


def _lines(data: bytes, newline: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=newline)


def _explain_encoding(data: bytes, name: str) -> BadInput:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        return BadInput(f"Line {line} of the manifest {name} is not UTF-8: save it so.")
    raise AssertionError("only called for bytes that are not UTF-8")


def _read_csv(data: bytes, name: str) -> Iterator[Cells]:
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))
    try:
        header = next((line for line in _lines(data, "") if line.strip()), "")
        delimiter = max(",;\t|", key=header.count)
        reader = csv.DictReader(
            _lines(data, ""), delimiter=delimiter, restkey=EXTRA_CELLS, strict=True
        )
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        if len(set(columns)) < len(columns):
            raise BadInput(f"The manifest {name} has two columns of one name: rename one.")
        yield from reader
    except UnicodeDecodeError as fault:
        raise _explain_encoding(data, name) from fault
    except csv.Error as fault:
        raise BadInput(
            f"Line {reader.line_num} of the manifest {name} is not valid CSV ({fault}): close its "
            "quotes, and double the quotes inside quoted cells."
        ) from fault


def _read_json(data: bytes, name: str) -> Iterator[Cells]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise _explain_encoding(data, name) from fault
    records = _parse_json(text, f"The manifest {name}")
    if not isinstance(records, list):
        raise BadInput(f"The manifest {name} holds no list: write [{{...}}, {{...}}].")
    for number, record in enumerate(records, start=1):
        yield _mapping(record, number, name)


def _read_jsonl(data: bytes, name: str) -> Iterator[Cells]:
    number = 0
    try:
        # Only "\n" ends a line: a prompt may hold other separators that JSON does not escape.
        for line_number, line in enumerate(_lines(data, "\n"), start=1):
            if line.strip():
                number += 1
                record = _parse_json(line, f"Line {line_number} of the manifest {name}")
                yield _mapping(record, number, name)
    except UnicodeDecodeError as fault:
        raise _explain_encoding(data, name) from fault


def _parse_json(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BadInput(f"{origin} is not valid JSON: {fault}.") from fault


def _mapping(record: object, number: int, name: str) -> Cells:
    if not isinstance(record, dict):
        raise BadInput(f'Row {number} of the manifest {name} is not a record: write {{"id": ...}}.')
    return record


def _read_parquet(data: bytes, name: str) -> Iterator[Cells]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Arrow's thread pool, once started, may abort a process that ends soon afterwards.
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False)
        for batch in file.iter_batches(PARQUET_BATCH_ROWS, use_threads=False):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as fault:
        raise BadInput(f"The manifest {name} is not a readable Parquet file: {fault}.") from fault
