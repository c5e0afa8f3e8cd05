"""The one door to stored records: one that does not read is a sentence with its path and the fix.

Whoever reads a JSON record, a table or a line of the workspace does it here, so that a damaged
object is `CorruptData` everywhere, and never a traceback without a file's name.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError

from hvkf.errors import CorruptData
from hvkf.records import FileEntry, NewerFormat, Record, decode_json
from hvkf.storage import Store, object_sha256
from hvkf.stored_kinds import fix_of

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

RecordT = TypeVar("RecordT", bound=Record)

MAX_SHOWN = 120


def read_record(store: Store, path: str, kind: type[RecordT]) -> RecordT:
    """Read a stored record.

    Raises:
        FileNotFoundError: there is none.
        CorruptData: it does not read; the sentence has its path, what is wrong, and what to do.
    """
    return decode_record(store.read(path), f"{store.url}/{path}", kind, fix_of(path))


def read_named(store: Store, path: str, kind: type[RecordT]) -> RecordT:
    """Read a record that must be there, since another one names it.

    Raises:
        CorruptData: it is gone, or does not read.
    """
    with explain_absence(store, path):
        return read_record(store, path, kind)


def read_object(store: Store, path: str) -> bytes:
    """Read an object that must be there, since a record names it.

    Raises:
        CorruptData: it is gone.
    """
    with explain_absence(store, path):
        return store.read(path)


@contextmanager
def explain_absence(store: Store, path: str) -> Iterator[None]:
    """Turn the absence of an object that a record names into a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise CorruptData(
            f"{store.url}/{path} is gone although a record names it: {fix_of(path)}."
        ) from None


def decode_record(data: bytes, where: str, kind: type[RecordT], fix: str) -> RecordT:
    """Decode the bytes of a record; see `read_record`.

    Args:
        data: What `Record.to_json` wrote.
        where: Its address, for the sentence.
        kind: What it is a record of.
        fix: What to do when it does not read, as a main clause.
    """
    try:
        return kind.from_json(data)
    except NewerFormat as error:
        raise CorruptData(f"{where} does not read: {error}; use that version.") from None
    except ValidationError as error:
        _refuse(where, _first_problem(error), fix)
    except (ValueError, RecursionError) as error:
        _refuse(where, str(error), fix)


def read_json(data: bytes, where: str, fix: str) -> Any:
    """Decode JSON of the workspace that is no record, such as a line of losses.

    Raises:
        CorruptData: it is none; see `decode_record`.
    """
    try:
        return decode_json(data)
    except ValueError as error:
        _refuse(where, str(error), fix)


@contextmanager
def explain_damage(store: Store, path: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a library raises over a damaged object's content into a sentence.

    Args:
        store: The workspace.
        path: The object.
        kinds: What the library raises beside ValueError.

    Raises:
        CorruptData: its path, what is wrong, and what to do.
    """
    errors: tuple[type[Exception], ...] = (ValueError, *kinds)
    try:
        yield
    except ValidationError as error:
        refuse_object(store, path, _first_problem(error))
    except errors as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's word on a file, not a library's on its content
        refuse_object(store, path, str(error) or type(error).__name__)


@contextmanager
def open_parquet(store: Store, path: str) -> "Iterator[ParquetFile]":
    """Open a stored Parquet table; what the block finds wrong with its content is its damage.

    Raises:
        FileNotFoundError: there is none.
        CorruptData: it does not read, or its rows are not what they should be.
    """
    # Here: Arrow takes half a second to load, which no command's --help should wait for.
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    local = store.local_path(path)
    source = io.BytesIO(store.read(path)) if local is None else local
    with (
        explain_damage(store, path, pa.lib.ArrowException, OSError, LookupError, TypeError),
        # Arrow's thread pool, once started, may abort a process that ends soon afterwards.
        ParquetFile(source, pre_buffer=False) as file,
    ):
        yield file


def put_file(store: Store, path: str, data: bytes) -> FileEntry:
    """Write an object, and say what a record is to remember of it; its name is the path's last."""
    store.put(path, data)
    name = path.rpartition("/")[2]
    return FileEntry(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def stored_file(store: Store, path: str) -> FileEntry:
    """Say what a record is to remember of an object that is there."""
    size = store.stat(path).size
    name = path.rpartition("/")[2]
    return FileEntry(name=name, sha256=object_sha256(store, path), size=size)


def refuse_object(store: Store, path: str, problem: str) -> NoReturn:
    """Say that a stored object is damaged.

    Raises:
        CorruptData: always.
    """
    _refuse(f"{store.url}/{path}", problem, fix_of(path))


def _refuse(where: str, problem: str, fix: str) -> NoReturn:
    raise CorruptData(f"{where} is damaged ({_shown(problem)}): {fix}.") from None


def _first_problem(error: ValidationError) -> str:
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(map(str, first["loc"]))
    problem = f"{_shown(place)}: {first['msg']}" if place else first["msg"]
    return f"{problem}; and {len(others)} more" if others else problem


def _shown(value: object) -> str:
    """Write a foreign text on one line, and no more of it than a person reads."""
    text = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(value))).strip()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
