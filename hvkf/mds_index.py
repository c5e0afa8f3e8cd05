"""The index of a folder of MDS shards, checked before any byte of a shard is decoded.

Whoever wrote an index chose its names, sizes and encodings. Each of the format's readers begins
here: no encoding that runs code, no name that leads elsewhere, no count that the files do not hold.
Needs neither torch nor `streaming`, for planning reads indexes too.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, ValidationError
from pydantic import model_validator as check_model
from pydantic_core import PydanticCustomError

from hvkf.errors import BadInput, CorruptData
from hvkf.storage import ObjectStat, Store
from hvkf.user_files import reason_of

INDEX_NAME = "index.json"
ENCODED_BYTES: dict[str, int | None] = {
    "str": None,
    "bytes": None,
    "int32": 4,
    "int64": 8,
    "float64": 8,
    "ndarray": None,
    "ndarray:uint8": None,
    "ndarray:uint16": None,
    "ndarray:float16": None,
    "ndarray:float32": None,
}
"""The encodings that hvkf and the reference write, with the bytes of a value where they are fixed.

`streaming` knows more: `pkl` runs code, images bring decoders, and a shape in an index allocates.
"""

ALLOWED = ", ".join(ENCODED_BYTES)
BAD_ENCODING = "encoding"
MAX_INDEX_BYTES = 32 << 20
MAX_SHARD_BYTES = 1 << 32
"""A shard's offsets are unsigned numbers of 32 bits."""
MAX_UNPACKED_RATIO = 1000
MIN_PACKED_BYTES = 64
"""Least bytes of a record in a compressed shard: latents and videos take thousands."""
MAX_SHOWN = 60

Count = Annotated[int, Field(ge=0, le=MAX_SHARD_BYTES)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
# Also no pattern of object storage, and nothing hidden.
ShardName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)
]
HashName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$", max_length=32)]
Compression = Annotated[str, StringConstraints(pattern=r"^(br|bz2|gz|snappy|zstd)(:[0-9]{1,2})?$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MdsFile(_Entry):
    """A shard's file: its name in the index's folder, its size, its hashes by algorithm."""

    basename: ShardName
    bytes: Count
    hashes: dict[HashName, Annotated[str, StringConstraints(max_length=256)]]


class MdsShard(_Entry):
    """A shard as its index describes it; `zip_data` is its compressed form, where it has one."""

    column_encodings: tuple[ColumnName, ...]
    column_names: tuple[ColumnName, ...]
    column_sizes: tuple[Count | None, ...]
    compression: Compression | None
    format: Literal["mds"]
    hashes: tuple[HashName, ...]
    raw_data: MdsFile
    samples: Count
    size_limit: int | str | None
    version: Literal[2]
    zip_data: MdsFile | None

    @property
    def stored(self) -> MdsFile:
        """The file that lies in the folder."""
        return self.zip_data or self.raw_data

    @property
    def min_sample_bytes(self) -> int:
        """The least that a sample takes: a size of 4 bytes, or a value of fixed length."""
        return sum(ENCODED_BYTES[encoding] or 4 for encoding in self.column_encodings)

    @check_model(mode="after")
    def _check(self) -> Self:
        _check_columns(self)
        if (self.compression is None) != (self.zip_data is None):
            raise ValueError("compression and zip_data must be there together")
        if self.samples:
            _check_sizes(self)
        return self


class _Index(BaseModel):
    model_config = ConfigDict(strict=True)

    version: Literal[2]
    # At the first error: a small file can have millions, and all would be kept.
    shards: Annotated[tuple[MdsShard, ...], FailFast()]

    @check_model(mode="after")
    def _check(self) -> Self:
        files = [shard.stored.basename for shard in self.shards]
        if len(set(files)) < len(files):
            raise ValueError("two shards have one file")
        if len({shard.column_names for shard in self.shards if shard.samples}) > 1:
            raise ValueError("its shards differ in their columns")
        return self


def _check_columns(shard: MdsShard) -> None:
    names, encodings, sizes = shard.column_names, shard.column_encodings, shard.column_sizes
    if not len(names) == len(encodings) == len(sizes):
        raise ValueError("as many column_names, column_encodings and column_sizes are needed")
    if len(set(names)) < len(names):
        raise ValueError("two columns have one name")
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
        if encoding not in ENCODED_BYTES:
            raise PydanticCustomError(
                BAD_ENCODING,
                "column {column} is stored as {encoding}; allowed are {allowed}",
                {"column": _shown(name), "encoding": _shown(encoding), "allowed": ALLOWED},
            )
        if size != ENCODED_BYTES[encoding]:
            raise ValueError(f"column {_shown(name)} of {encoding} has another size than that")


def _check_sizes(shard: MdsShard) -> None:
    """See that the files can hold as many samples, and unpack to no more than is likely."""
    least = 4 * (shard.samples + 2) + shard.samples * shard.min_sample_bytes
    if shard.raw_data.bytes < least:
        raise ValueError(
            f"{shard.samples} samples do not fit into raw_data of {shard.raw_data.bytes} bytes"
        )
    if shard.zip_data is None:
        return
    packed = shard.zip_data.bytes
    if shard.samples * MIN_PACKED_BYTES > packed:
        raise ValueError(f"{shard.samples} samples do not fit into zip_data of {packed} bytes")
    if shard.raw_data.bytes > MAX_UNPACKED_RATIO * packed:
        raise ValueError(
            f"zip_data of {packed} bytes would become {shard.raw_data.bytes}, more than "
            f"{MAX_UNPACKED_RATIO} times as many"
        )


def parse_index(data: bytes, path: str) -> tuple[MdsShard, ...]:
    """Read an index from its bytes; `path` is for messages.

    Raises:
        BadInput: it is no index, or names what is not read.
    """
    try:
        return _Index.model_validate_json(data).shards
    except ValidationError as error:
        # `input` is left out: it may be all of the index.
        detail = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in detail["loc"])[:MAX_SHOWN]
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == BAD_ENCODING:
            raise BadInput(f"{path} is refused: {message}.") from None
        value = detail["input"]
        shown = f" ({_shown(value)})" if isinstance(value, str | int) and where else ""
        raise BadInput(
            f"{path} is not an index of MDS shards that hvkf reads: {where}{shown}"
            f"{': ' if where else ''}{message[:300]}; copy the folder again from where it was made."
        ) from None


def read_index(folder: Store) -> tuple[MdsShard, ...]:
    """Read the index of a folder of MDS shards.

    Raises:
        BadInput: there is none, it is no index, or it names what is not read.
    """
    path = f"{folder.url}/{INDEX_NAME}"
    try:
        data = folder.read(INDEX_NAME, MAX_INDEX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"{folder.url} has no {INDEX_NAME}: name the folders that hold MDS shards themselves, "
            "such as data.local=[cache/1280x720x33_00]."
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read: {reason_of(error)}; copy the folder again from where it was "
            "made."
        ) from error
    return parse_index(data, path)


def check_stored(folder: Store, shard: MdsShard) -> ObjectStat:
    """See that a shard's file is there and as long as its index says.

    Raises:
        CorruptData: it is not.
    """
    name = shard.stored.basename
    try:
        stat = folder.stat(name)
    except FileNotFoundError:
        raise CorruptData(
            f"The shard {folder.url}/{name} is missing although its index names it: copy the "
            "folder again."
        ) from None
    if stat.size != shard.stored.bytes:
        raise CorruptData(
            f"The shard {folder.url}/{name} has {stat.size} bytes where its index says "
            f"{shard.stored.bytes}: copy it again from where it was made."
        )
    return stat


def num_samples(shards: Sequence[MdsShard]) -> int:
    """Count the samples of an index."""
    return sum(shard.samples for shard in shards)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
