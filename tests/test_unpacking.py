"""Unpacking shards: all that `streaming` can pack, to as many bytes as were promised."""

import os
from pathlib import Path

import pytest
from streaming.base.compression import compress, get_compressions

from hvkf.errors import CorruptData
from hvkf.unpacking import unpack

RAW = os.urandom(500) * 5000


@pytest.mark.parametrize("compression", ["br:1", "bz2", "gz", "snappy", "zstd", "zstd:22", "gz:0"])
def test_what_was_packed_is_unpacked(compression: str, tmp_path: Path) -> None:
    assert compression in get_compressions()
    unpack(compress(compression, RAW), compression, len(RAW), tmp_path / "raw", "x")
    assert (tmp_path / "raw").read_bytes() == RAW


@pytest.mark.parametrize("compression", ["br:1", "bz2", "gz", "snappy", "zstd"])
@pytest.mark.parametrize("difference", [-1, 1, -len(RAW) + 1])
def test_more_or_fewer_bytes_than_promised_are_refused(
    compression: str, difference: int, tmp_path: Path
) -> None:
    packed = compress(compression, RAW)
    with pytest.raises(CorruptData, match=r"x (becomes|cannot be unpacked)"):
        unpack(packed, compression, len(RAW) + difference, tmp_path / "raw", "x")
    assert (tmp_path / "raw").stat().st_size <= len(RAW)


@pytest.mark.parametrize("compression", ["br:1", "bz2", "gz", "snappy", "zstd"])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5])
def test_a_stream_cut_short_is_refused(compression: str, kept: float, tmp_path: Path) -> None:
    packed = compress(compression, RAW)
    cut = packed[: kept if isinstance(kept, int) else int(len(packed) * kept)]
    with pytest.raises(CorruptData, match=r"x (becomes|cannot be unpacked)"):
        unpack(cut, compression, len(RAW), tmp_path / "raw", "x")
