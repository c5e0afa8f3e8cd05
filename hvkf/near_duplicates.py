"""Source videos that show the same, whatever their size or encoding: by perceptual hashes.

A hash is the 64-bit pHash (signs of the low frequencies of a grey thumbnail) of a few frames, as
hexadecimal digits, 16 a frame.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvkf.records import Reading

HASHED_AT = (0.1, 0.35, 0.65, 0.9)
"""Where in a video frames are hashed: not at its ends, which fade from and to black."""
HASH_SIDE = 8
THUMBNAIL_FACTOR = 4
MAX_APART = 0.08
"""Videos whose hashes differ in at most this share of bits show the same."""
ROWS_AT_ONCE = 4096


def perceptual_hash(file: Path, num_frames: int, reading: Reading) -> str:
    """Hash a video's frames, read as `reading` says, at four places.

    Decodes it up to the last of them.

    Raises:
        MediaFault: a frame cannot be decoded.
    """
    from scenedetect.detectors import HashDetector  # OpenCV takes a second

    from hvkf.video import decode_frames

    places = [min(num_frames - 1, int(share * num_frames)) for share in HASHED_AT]
    bits = {}
    for place, frame in decode_frames(file, places, reading):
        bgr = np.ascontiguousarray(frame[..., ::-1])
        bits[place] = HashDetector.hash_frame(bgr, HASH_SIDE, THUMBNAIL_FACTOR)
    return "".join(np.packbits(bits[place]).tobytes().hex() for place in places)


def groups(hashes: Mapping[str, str], new: Set[str]) -> list[list[str]]:
    """Group the names whose hashes are near, and what is near to those; each name once.

    Names without a hash stay alone. Equal input gives equal groups, each sorted.

    Args:
        hashes: Name to hash.
        new: Names to compare with all; the others are not compared with each other, so that a
            video that is added costs one row of comparisons.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = sorted(hashes)
    hashed = [name for name in names if hashes[name]]
    alone = [[name] for name in names if not hashes[name]]
    if not hashed:
        return alone
    compared = np.flatnonzero([name in new for name in hashed])
    rows, columns = _near_pairs(_signs([hashes[name] for name in hashed]), compared)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(hashed), len(hashed)))
    _, labels = connected_components(graph, directed=False)
    found: dict[int, list[str]] = {}
    for name, label in zip(hashed, labels.tolist(), strict=True):
        found.setdefault(label, []).append(name)
    return sorted([*found.values(), *alone])


def _signs(hashes: Sequence[str]) -> NDArray[np.float32]:
    """Bits as +1 and -1: the product of two rows counts agreements less differences."""
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8)
    return np.unpackbits(packed.reshape(len(hashes), -1), axis=1).astype(np.float32) * 2 - 1


def _near_pairs(
    signs: NDArray[np.float32], compared: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    least = signs.shape[1] * (1 - 2 * MAX_APART)
    rows, columns = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for begin in range(0, len(compared), ROWS_AT_ONCE):
        chunk = compared[begin : begin + ROWS_AT_ONCE]
        first, second = np.nonzero(signs[chunk] @ signs.T >= least)
        rows.append(chunk[first])
        columns.append(second)
    return np.concatenate(rows), np.concatenate(columns)
