"""Headers tell how long a file should be; what they cannot tell is not held against it."""

import io

import pytest

from hvkf.containers import what_is_cut_off


def box(kind: bytes, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = 8 + len(payload) if length is None else length
    return size.to_bytes(4) + kind + payload


def large_box(kind: bytes, payload: bytes) -> bytes:
    return (1).to_bytes(4) + kind + (16 + len(payload)).to_bytes(8) + payload


def lacking(data: bytes) -> str | None:
    return what_is_cut_off(io.BytesIO(data), len(data))


START = box(b"ftyp", b"isom") + box(b"moov", bytes(40))
PICTURES = bytes(range(256))
EBML = b"\x1a\x45\xdf\xa3\x84abcd"
SEGMENT = b"\x18\x53\x80\x67"


@pytest.mark.parametrize(
    "data",
    [
        START + box(b"mdat", PICTURES),
        START + large_box(b"mdat", PICTURES),
        START + box(b"mdat", PICTURES, length=0),  # which means: up to the end
        START + box(b"mdat", PICTURES) + bytes(50),
        START + box(b"mdat", PICTURES) + box(b"free", b"", length=1000),
        EBML + SEGMENT + b"\x84abcd",
        EBML + SEGMENT + b"\x40\x04abcd",
        EBML + SEGMENT + b"\x01" + b"\xff" * 7 + b"a stream of unknown length",
        EBML + SEGMENT + b"\x00" + b"a length that is not valid",
        EBML + b"\xec\x84abcd",
        EBML,
        b"RIFF" + (8).to_bytes(4, "little") + b"AVI abcd",
        b"RIFF" + (10**6).to_bytes(4, "little") + b"WAVEabcd",
        b"\x47" * 188,
        b"x",
        b"",
    ],
)
def test_whole_files_and_unknown_formats_lack_nothing(data: bytes) -> None:
    assert lacking(data) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (START + box(b"mdat", PICTURES)[:-1], "it has 323 of at least 324 bytes"),
        (START + large_box(b"mdat", PICTURES)[:-1], "it has 331 of at least 332 bytes"),
        (START[:-1], "it has 59 of at least 60 bytes"),
        (START, "it has no mdat box"),
        (START + b"\0\0\0", "it has no mdat box"),
        (box(b"ftyp", b"isom") + box(b"mdat", PICTURES), "it has no moov box"),
        (box(b"ftyp", b"isom")[:-2], "it has no moov and no mdat box"),
        (EBML + SEGMENT + b"\x84abc", "it has 17 of 18 bytes"),
        (EBML + SEGMENT + b"\x40\x04ab", "it has 17 of 19 bytes"),
        (b"RIFF" + (8).to_bytes(4, "little") + b"AVI abc", "it has 15 of 16 bytes"),
    ],
)
def test_a_file_shorter_than_its_headers_say_is_cut_off(data: bytes, words: str) -> None:
    assert lacking(data) == words
