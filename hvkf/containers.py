"""Finds video files that end before their own headers say: decoders stop there without a word."""

from typing import BinaryIO


def what_is_cut_off(file: BinaryIO, size: int) -> str | None:
    """Say in words what a file of `size` bytes lacks by its own headers, or None.

    Looks at the top level of MP4 and MOV (ISO 14496-12), Matroska and WebM (RFC 8794), and AVI.
    None for any other format, too.
    """
    start = file.read(256)
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _cut_off_mp4(file, size)
    end = 0
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        end = 8 + int.from_bytes(start[4:8], "little")
    elif start[:4] == b"\x1a\x45\xdf\xa3":
        end = _matroska_end(start)
    if end > size:
        return f"it has {size} of {end} bytes"
    return None


def _cut_off_mp4(file: BinaryIO, size: int) -> str | None:
    place = 0
    kinds: list[bytes] = []
    while place + 8 <= size:
        file.seek(place)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16])
        elif length == 0:
            length = size - place
        if length < 8:
            break  # padding or rubbish behind the last box, which decoders do not mind
        kinds.append(kind)
        if kind in (b"moov", b"mdat", b"moof") and place + length > size:
            return f"it has {size} of at least {place + length} bytes"
        place += length
    missing = [kind.decode() for kind in (b"moov", b"mdat") if kind not in kinds]
    return f"it has no {' and no '.join(missing)} box" if missing else None


def _matroska_end(start: bytes) -> int:
    """Read where the Segment of a Matroska file ends; 0 when it does not say."""
    header_size, place = _ebml_size(start, 4)
    place += header_size
    if start[place : place + 4] != b"\x18\x53\x80\x67":
        return 0
    segment_size, place = _ebml_size(start, place + 4)
    return place + segment_size if segment_size else 0


def _ebml_size(data: bytes, place: int) -> tuple[int, int]:
    """Read a variable-length size and the place behind it; 0 when it is unknown or not valid.

    The leading zero bits of the first byte count the bytes that follow; all ones mean unknown.
    """
    first = data[place] if place < len(data) else 0
    length = 9 - first.bit_length()
    if length > 8:
        return 0, place
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[place : place + length]) & mask
    return (0 if value == mask else value), place + length
