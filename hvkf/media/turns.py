"""Laying pictures down as the display matrix says: one of eight ways."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from hvkf.records import Note

STRAIGHT = 0.01
"""A matrix this near to one of the eight is it."""


@dataclass(frozen=True)
class Turn:
    """One of the eight ways to lay a picture down: transposed first, then mirrored."""

    is_transposed: bool = False
    is_mirrored_x: bool = False
    is_mirrored_y: bool = False

    def apply(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a picture [H, W, 3]."""
        turned = frame_HWC.transpose(1, 0, 2) if self.is_transposed else frame_HWC
        turned = turned[:, ::-1] if self.is_mirrored_x else turned
        turned = turned[::-1] if self.is_mirrored_y else turned
        return np.ascontiguousarray(turned)


def turn_of(frame: VideoFrame) -> Turn:
    """Read the display matrix [a b u; c d v; x y w], which sends (p, q) to (ap + cq, bp + dq)."""
    entries = _entries(frame)
    if entries is None:
        return Turn()
    a, b, c, d = entries
    if abs(b) > abs(a):
        return Turn(is_transposed=True, is_mirrored_x=c < 0, is_mirrored_y=b < 0)
    return Turn(is_mirrored_x=a < 0, is_mirrored_y=d < 0)


def turn_note(frame: VideoFrame) -> Note | None:
    """Say where a display matrix is none of the eight ways."""
    entries = _entries(frame)
    if entries is None:
        return None
    a, b, c, d = map(abs, entries)
    kept, lost = (max(b, c), max(a, d)) if b > a else (max(a, d), max(b, c))
    if lost <= STRAIGHT * kept:
        return None
    return Note(
        code="rotation", message="its rotation is no quarter turn: the nearest one is taken"
    )


def _entries(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    side_data: Any = frame.side_data  # PyAV's types call it a dict of motion vectors
    matrices = [data for data in side_data if data.type is SideDataType.DISPLAYMATRIX]
    if not matrices:
        return None
    a, b, _, c, d = np.frombuffer(bytes(matrices[0]), dtype=np.int32)[:5].tolist()
    return a, b, c, d
