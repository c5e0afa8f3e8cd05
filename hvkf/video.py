"""Reads videos frame by frame with PyAV, and finds out what is wrong with them.

A frame's index is its place among the frames that decoding gives, in presentation order; nothing
here trusts the container's own count. `hvkf/media/` holds the parts; docs/ingest.md says what is
done with every kind of video.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvkf.media.errors import MediaFault
from hvkf.media.pipeline import frames_to_show, look
from hvkf.media.reading import Choices, displayed_size
from hvkf.media.turns import Turn
from hvkf.records import Note, Reading

PLAIN = Reading()
DEFAULT_CHOICES = Choices()


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a whole video showed.

    `width` and `height` are pixels as displayed: by the pixels' aspect ratio, then turned by 90
    degrees where `is_rotated` says that the file asks for any turn or mirroring. `fps` is the mean
    rate; with `is_variable_fps` some frame lies more than half a frame away from the place that the
    mean rate gives it, and `times_s` holds the time of each, from the first one's on. `reading` is
    how to read its frames, `notes` says what of that was chosen.
    """

    width: int
    height: int
    fps: Fraction
    num_frames: int
    duration_s: float
    codec: str
    is_rotated: bool
    is_variable_fps: bool
    times_s: tuple[float, ...] = ()
    reading: Reading = PLAIN
    notes: tuple[Note, ...] = ()


def probe(path: str | Path, choices: Choices = DEFAULT_CHOICES) -> VideoInfo:
    """Decode a whole video, without converting its pixels, and say what is in it.

    Args:
        path: The file.
        choices: What to do with videos that cannot be taken as they are.

    Raises:
        MediaFault: the file cannot be decoded from its first to its last frame, or is refused.
    """
    path = Path(path)
    found = look(path, choices)
    if found is None:
        raise MediaFault("empty", f"{path.name} has a video stream without a single frame")
    if found.num_frames == 1:
        raise MediaFault(
            "no-video-stream", f"{path.name} holds a single picture, no video; remove its row"
        )
    said = found.said
    width, height = displayed_size(said.width, said.height, found.reading.aspect)
    if found.turn.is_transposed:
        width, height = height, width
    return VideoInfo(
        width=width,
        height=height,
        fps=found.timing.fps,
        num_frames=found.num_frames,
        duration_s=found.timing.duration_s,
        codec=found.codec,
        is_rotated=found.turn != Turn(),
        is_variable_fps=found.timing.is_variable,
        times_s=found.timing.times_s,
        reading=found.reading,
        notes=found.notes,
    )


def decode_frames(
    path: str | Path, indices: Iterable[int], reading: Reading | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode straight through once and yield each wanted frame as (index, uint8 RGB HWC).

    Indices come out ascending and once each, whatever their order; only wanted frames are converted
    and only one is held. Decoding ends with the last of them.

    Args:
        path: The file.
        indices: Of the wanted frames, from 0.
        reading: How its pictures are read, by `probe`; None to choose that by its headers and its
            first frame, which do not tell all of what `probe` finds.

    Raises:
        MediaFault: a frame up to the last wanted one cannot be decoded, or is not there.
        ValueError: an index is negative.
    """
    path = Path(path)
    wanted = sorted(set(indices))
    if wanted and wanted[0] < 0:
        raise ValueError(f"frame indices count from 0, not {wanted[0]}")
    if not wanted:
        return
    remaining = iter(wanted)
    next_wanted = next(remaining)
    index = -1
    with frames_to_show(path, reading) as shown:
        for index, frame in enumerate(shown.frames):
            if index < next_wanted:
                continue
            yield index, shown.turn.apply(shown.converter.rgb(frame))
            if index == wanted[-1]:
                return
            next_wanted = next(remaining)
    raise MediaFault(
        "too-short", f"{path.name} has {index + 1} frames, so there is no frame {next_wanted}"
    )
