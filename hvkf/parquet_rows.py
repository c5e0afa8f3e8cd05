"""The rows of a Parquet table that a person brings: chosen columns of plain types, in batches.

A few kilobytes of Parquet can say millions of rows, or one long text millions of times. Texts are
read as dictionaries, so that a text that repeats is one object however often it does.
"""

from collections.abc import Callable, Iterator, Set
from typing import Any

import pyarrow
import pyarrow.parquet

from hvkf.errors import BadInput

MAX_UNPACKED_BYTES = 512 << 20
BATCH_ROWS = 16384
MAX_SHOWN = 200


def read_parquet_rows(
    data: bytes,
    label: str,
    wanted: Set[str],
    check: Callable[[list[str]], None],
    max_rows: int,
) -> Iterator[dict[str, Any]]:
    """Yield the cells of the wanted columns, row by row.

    Args:
        data: The file's bytes.
        label: What messages begin with, such as "The table x.parquet".
        wanted: The columns to read, of those that are there.
        check: Called once with all columns' names; may refuse them.
        max_rows: A file that says more is refused before any is read.

    Raises:
        BadInput: the file is broken or too large, or a wanted column is of another type than text,
            numbers or truth values.
    """
    try:
        names, types = _columns(data)
        check(names)
        chosen = [name for name in names if name in wanted]
        _check_types(chosen, dict(zip(names, types, strict=True)), label)
        file = _open(data, [name for name in chosen if _is_text(types[names.index(name)])])
        _check_size(file.metadata, label, max_rows)
        # Arrow's thread pool, once started, may abort a process that ends soon afterwards.
        for batch in file.iter_batches(BATCH_ROWS, columns=chosen, use_threads=False):
            columns = [_values(batch.column(name)) for name in chosen]
            for cells in zip(*columns, strict=True) if chosen else ((),) * batch.num_rows:
                yield dict(zip(chosen, cells, strict=True))
    except UnicodeDecodeError:
        raise BadInput(f"{label} holds text that is not UTF-8: write it anew.") from None
    except (pyarrow.ArrowException, OSError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split())[:MAX_SHOWN]
        raise BadInput(f"{label} is not a readable Parquet file: {reason}.") from None


def _open(data: bytes, dictionaries: list[str]) -> Any:
    return pyarrow.parquet.ParquetFile(
        pyarrow.BufferReader(data), pre_buffer=False, read_dictionary=dictionaries
    )


def _columns(data: bytes) -> tuple[list[str], list[Any]]:
    schema = _open(data, []).schema_arrow
    return [field.name for field in schema], [field.type for field in schema]


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    value = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(value) or types.is_large_string(value))


def _check_types(chosen: list[str], kinds: dict[str, Any], label: str) -> None:
    types = pyarrow.types
    for name in chosen:
        kind = kinds[name]
        is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        if not (_is_text(kind) or is_number or types.is_null(kind)):
            raise BadInput(
                f"{label} has a column {name!r} of type {str(kind)[:MAX_SHOWN]}, which is not "
                "read: write it as text or as numbers."
            )


def _check_size(metadata: Any, label: str, max_rows: int) -> None:
    if metadata.num_rows > max_rows:
        raise BadInput(f"{label} has {metadata.num_rows} rows, more than {max_rows}: split it.")
    # Not by column: Arrow ends the whole process when it is asked for a damaged column's facts.
    size = sum(
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    )
    if size > MAX_UNPACKED_BYTES:
        raise BadInput(
            f"{label} unpacks to {size >> 20} MiB, more than {MAX_UNPACKED_BYTES >> 20}: split it."
        )


def _values(column: Any) -> list[Any]:
    if not pyarrow.types.is_dictionary(column.type):
        values: list[Any] = column.to_pylist()
        return values
    # A batch uses few of its dictionary's texts, which may be those of a million rows.
    places = column.indices.to_pylist()
    texts = {place: column.dictionary[place].as_py() for place in set(places) - {None}}
    return [texts.get(place) for place in places]
