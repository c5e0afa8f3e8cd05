"""Unpacking a compressed shard, to as many bytes as its index says and not one more.

`streaming` unpacks all at once, in memory: 34 KB can be a gigabyte.
"""

from collections.abc import Iterator
from pathlib import Path

from hvkf.errors import CorruptData

ARROW_NAMES = {"br": "brotli", "bz2": "bz2", "gz": "gzip", "zstd": "zstd"}
CHUNK_BYTES = 1 << 20


def unpack(data: bytes, compression: str, size: int, file: Path, path: str) -> None:
    """Write `data` unpacked to a file.

    Args:
        data: The compressed bytes.
        compression: As an MDS index names it, such as "zstd" or "br:11".
        size: Of the unpacked bytes; nothing beyond is unpacked.
        file: Where they go; after an error, what it holds has no meaning.
        path: Of the compressed file, for messages.

    Raises:
        CorruptData: the bytes are not so compressed, or become more or fewer than `size`.
    """
    written = 0
    with file.open("wb") as sink:
        for chunk in _chunks(data, compression.partition(":")[0], size, path):
            written += len(chunk)
            if written > size:
                break
            sink.write(chunk)
    if written != size:
        raise CorruptData(
            f"The shard {path} becomes {'more than ' * (written > size)}{min(written, size)} bytes "
            f"where its index says {size}: copy it again from where it was made."
        )


def _chunks(data: bytes, kind: str, size: int, path: str) -> Iterator[bytes]:
    import pyarrow  # half a second, and most shards are not compressed

    try:
        if kind == "snappy":  # in one piece; Arrow refuses what would not fit into `size`
            # Its result is padded up to that size: the length stands in front of the data.
            whole = pyarrow.Codec(kind).decompress(data, decompressed_size=size, asbytes=True)
            yield whole[: _snappy_length(data)]
            return
        stream = pyarrow.CompressedInputStream(pyarrow.BufferReader(data), ARROW_NAMES[kind])
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptData(
            f"The shard {path} cannot be unpacked ({str(error)[:200]}): copy it again from where "
            "it was made."
        ) from None


def _snappy_length(data: bytes) -> int:
    """Read the unpacked length: seven bits a byte, the least first, the last without its top."""
    length = 0
    for place, byte in enumerate(data[:5]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return length
